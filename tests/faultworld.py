"""Every command of ``lcmmerge`` on tiny real models: its line, its inputs, what reads each of them, what may stay."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from hostile_quantised import quantised
from pico import lcm_lora, pico, style_lora
from pictures import folder_of
from safetensors.torch import load_file

RECIPE = """\
version: 1
sources:
  base: {0}base.safetensors
  style: {0}style.safetensors
  lcm: {{reference: {0}lcm.safetensors, accelerator: lcm}}
fuse:
  base: base
  terms: {{style: 0.8, lcm: 1.0}}
check: {{coverage: {{min: 1}}}}
"""
EVERYTHING = RECIPE.replace("check: {{coverage: {{min: 1}}}}\n", "") + """\
  dtype: fp16
  rounding: nearest
  layout: single-file
  config_from: base
matrix: {{lambda.style: [0.5, 0.8]}}
search: {{prompts: [a fox], grid: {{lcm: [0.5, 1]}}, steps: 2, optimize: 4, blocks: {{style: {{IN: [0.5, 1]}}}}}}
generate: {{prompts: [a fox, a hat], count: 2, seed: 7, size: 64x64, guidance: 1.5, scheduler: ddim, negative: blurred}}
export: {{to: onnx, dtype: fp16, static: [64x64], parity: false}}
check: {{coverage: {{min: 1}}, relative: {{max: 9}}, bytes: {{max: 1000000000}}}}
publish: hf://me/model
"""


@dataclass(frozen=True, slots=True)
class Command:
    """``lcmmerge`` with ``arguments``, in a folder that has ``inputs``: there → what of the world it is.

    ``readers``: file → its kind in hostile.py. Whatever is written goes below ``out``. ``again``: what is added to go
    on after a kill. ``keeps``: what may stay of a run that ended early, as patterns; ``varies``: what differs from run
    to run; ``caches``: where any run may leave files for the next.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    readers: Mapping[str, str] = field(default_factory=dict)
    again: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    writes: bool = True

    def lay(self, world: World, folder: Path) -> None:
        """A fresh folder with the inputs."""
        (folder / "out").mkdir(parents=True, exist_ok=True)
        for place, item in self.inputs.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            source = world.item(item)
            copy = partial(shutil.copytree, dirs_exist_ok=True) if source.is_dir() else shutil.copyfile
            copy(source, folder / place)


@dataclass(frozen=True, slots=True)
class World:
    """Sound inputs, each made when it is first asked for."""

    root: Path

    def item(self, name: str) -> Path:
        path = self.root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[name](self, path)
        return path

    def made(self, line: str, path: Path) -> None:
        """By a command, which finds its inputs in the world."""
        words = line.split()
        child = os.fork()
        if not child:
            try:
                from lcmmerge.cli import main

                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.chdir(self.root)
                sys.argv = ["lcmmerge", *words, "-o", path.name]
                main()
                os._exit(0)
            except BaseException as error:
                sys.stderr.write(f"{line}: {error!r}\n")
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0, line
        assert path.exists(), line


def _ckpt(world: World, path: Path) -> None:
    torch.save({"state_dict": load_file(world.item("base.safetensors"))}, path)


def _quantised(world: World, path: Path) -> None:
    path.write_bytes(quantised(load_file(world.item("base.safetensors"))))


def _recipe(world: World, path: Path, text: str = RECIPE, above: str = "") -> None:
    path.write_text(text.format(above))


def _by(line: str, *needed: str) -> Callable[[World, Path], None]:
    def make(world: World, path: Path) -> None:
        for name in needed:
            world.item(name)
        world.made(line, path)

    return make


FUSE = "base.safetensors style.safetensors --lcm lcm.safetensors"
SOURCES = ("base.safetensors", "style.safetensors", "lcm.safetensors")
TRAIN = "--data data --resolution 64 --batch 1 --rank 2 --device cpu --workers 0 --checkpoint-every 2"
MAKERS: dict[str, Callable[[World, Path], None]] = {
    "base": lambda world, path: pico("sd1").folder(path),
    "base.safetensors": lambda world, path: pico("sd1").single_file(path),
    "base.ckpt": _ckpt,
    "style.safetensors": lambda world, path: style_lora(path, "sd1"),
    "lcm.safetensors": lambda world, path: lcm_lora(path, "sd1"),
    "data": lambda world, path: folder_of(path, 4),
    "prompts.txt": lambda world, path: path.write_text("a fox\na hat\n"),
    "recipe.yaml": _recipe,
    "out-recipe.yaml": partial(_recipe, above="../"),
    "everything.yaml": partial(_recipe, text=EVERYTHING),
    "out-everything.yaml": partial(_recipe, text=EVERYTHING, above="../"),
    "fused.safetensors": _by(f"fuse {FUSE} --threads 1", *SOURCES),
    "run": _by("run recipe.yaml", "recipe.yaml", *SOURCES),
    "encoded": _by("distill base --data data --resolution 64 --workers 0 --encode-only", "base", "data"),
    "export": _by(f"export {FUSE} --accelerator lcm --config-from base --no-fused --cache cache", "base", *SOURCES),
    "cache": lambda world, path: shutil.copytree(world.item("export"), world.root / "unused") and None,
    "lora.safetensors": _by(f"distill base {TRAIN} --steps 4", "base", "data"),
    "base.gguf": _by(f"fuse {FUSE} --lambda 0 0 --encoding gguf:f16 --threads 1", *SOURCES),
    "quantised.safetensors": _quantised,
    "lora.training": lambda world, path: world.item("lora.safetensors") and None,
    "study": _by("search base style.safetensors --lcm lcm.safetensors --accelerator lcm --grid lcm=0.5,1 "
                 "--prompts prompts.txt --steps 1 --count 1 --size 64x64 --guidance 1 --device cpu", "base",
                 "prompts.txt", *SOURCES),
}  # fmt: skip

WHOLE = {name: name for name in SOURCES}
TENSORS = dict.fromkeys(SOURCES, "safetensors")
CONFIGS = {
    **dict.fromkeys(("base/model_index.json", "base/unet/config.json", "base/vae/config.json"), "json"),
    **dict.fromkeys(("base/text_encoder/config.json", "base/scheduler/scheduler_config.json"), "json"),
    **dict.fromkeys(("base/tokenizer/tokenizer.json", "base/tokenizer/tokenizer_config.json"), "json"),
}
FOLDER = CONFIGS | {"base/unet/diffusion_pytorch_model.safetensors": "safetensors"}
TRAINED = {"base": "base", "data": "data"}
TRAINING = {"data/image00.png": "png", "data/image01.txt": "text"}
SEARCHED = {"base": "base", "prompts.txt": "prompts.txt", "style.safetensors": "style.safetensors"}
SEARCH = (
    "search", "base", "style.safetensors", "--lcm", "lcm.safetensors", "--accelerator", "lcm", "--grid", "lcm=0.5,1",
    "--prompts", "prompts.txt", "--steps", "1", "--count", "1", "--size", "64x64", "--guidance", "1", "--device", "cpu",
    "-o", "out/study",
)  # fmt: skip
EXPORT = ("export", *FUSE.split(), "--accelerator", "lcm", "--config-from", "base", "--no-fused", "--cache", "cache")
GRAPHS = {
    **{f"export/{name}/model.onnx": "onnx" for name in ("unet", "vae_decoder", "text_encoder")},
    "export/lcmmerge.json": "json",
    "export/unet/diffusion_pytorch_model.safetensors": "safetensors",
}
EXPORTED = {"export": "export"}


def train(name: str, *more: str) -> tuple[str, ...]:
    return (name, "base", *TRAIN.split(), "--steps", "4", "-o", "out/lora.safetensors", *more)


ENCODED = {
    "encoded/lcmmerge-encoded.json": "json",
    **dict.fromkeys(("encoded/blank.safetensors", "encoded/00000.safetensors"), "safetensors"),
}
OTHERS = {"base.gguf": "gguf", "quantised.safetensors": "quantised"}
WORK = ("out/lora.training*",)
COMMANDS = (
    Command("run", ("run", "recipe.yaml", "-o", "out/run", "--threads", "1"), WHOLE | {"recipe.yaml": "recipe.yaml"},
            TENSORS | {"recipe.yaml": "yaml"}, keeps=("out/run*",)),
    Command("run", ("run", "recipe.yaml", "-o", "out/run"), WHOLE | {"recipe.yaml": "recipe.yaml", "out/run": "run"},
            {"recipe.yaml": "yaml", "out/run/run.json": "json", "out/run/recipe.yaml.lock": "json"},
            keeps=("out/run*",)),
    Command("lock", ("lock", "out/recipe.yaml"), WHOLE | {"out/recipe.yaml": "out-recipe.yaml"},
            {"out/recipe.yaml": "yaml", "base.safetensors": "safetensors"}),
    Command("lock", ("lock", "out/everything.yaml"), WHOLE | {"out/everything.yaml": "out-everything.yaml"},
            {"out/everything.yaml": "yaml"}),
    Command("run", ("run", "everything.yaml", "-o", "out/run", "--dry-run"),
            WHOLE | {"everything.yaml": "everything.yaml"}, {"everything.yaml": "yaml"}, writes=False),
    Command("fuse", ("fuse", *FUSE.split(), "-o", "out/f.safetensors", "--threads", "1"), WHOLE, TENSORS,
            again=("--force",)),
    Command("fuse", ("fuse", *FUSE.split(), "-o", "out/f", "--layout", "diffusers", "--config-from", "base", "--dtype",
            "bf16"), WHOLE | {"base": "base"}, CONFIGS, again=("--force",)),
    Command("fuse", ("fuse", "base.ckpt", "--lcm", "lcm.safetensors", "-o", "out/f.safetensors"),
            {"base.ckpt": "base.ckpt", "lcm.safetensors": "lcm.safetensors"}, {"base.ckpt": "pickle"},
            again=("--force",)),
    Command("generate", ("generate", "base", "--prompts", "prompts.txt", "--size", "64x64", "--steps", "1", "--device",
            "cpu", "-o", "out/images"), {"base": "base", "prompts.txt": "prompts.txt"},
            FOLDER | {"prompts.txt": "text"},
            again=("--force",), keeps=("out/images*",)),
    Command("generate", ("generate", "export", "--prompt", "a fox", "--size", "64x64", "--steps", "1", "--provider",
            "cpu", "-o", "out/images"), EXPORTED, GRAPHS, again=("--force",), keeps=("out/images*",)),
    Command("search", SEARCH, SEARCHED | {"lcm.safetensors": "lcm.safetensors"},
            {"style.safetensors": "safetensors", "prompts.txt": "text", "base/unet/config.json": "json"},
            keeps=("out/study*",), varies=("out/study/*",)),
    Command("search", SEARCH, SEARCHED | {"lcm.safetensors": "lcm.safetensors", "out/study": "study"},
            {"out/study/study.db": "sqlite", "out/study/study.json": "json"}, keeps=("out/study*",),
            varies=("out/study/*",)),
    Command("distill", train("distill"), TRAINED, TRAINING | {"base/unet/config.json": "json"}, again=("--resume",),
            keeps=WORK, varies=("out/lora.training/*",)),
    Command("distill", train("distill", "--resume", "--force"),
            TRAINED | {"out/lora.training": "lora.training"},
            {"out/lora.training/step-000004/state.json": "json",
             "out/lora.training/step-000004/trained.safetensors": "safetensors",
             "out/lora.training/step-000004/optimizer.pt": "pickle"}, keeps=WORK,
            varies=("out/lora.training/*",)),
    Command("distill", ("distill", "base", "--data", "data", "--resolution", "64", "--workers", "0", "--device", "cpu",
            "--encode-only", "-o", "out/encoded"), TRAINED, TRAINING, keeps=("out/encoded*",)),
    Command("distill", train("distill", "--data", "encoded"), {"base": "base", "encoded": "encoded"}, ENCODED,
            again=("--resume",), keeps=WORK, varies=("out/lora.training/*",)),
    Command("train-style", train("train-style"), TRAINED, TRAINING, again=("--resume",), keeps=WORK,
            varies=("out/lora.training/*",)),
    Command("export", (*EXPORT, "-o", "out/export"), WHOLE | {"base": "base", "cache": "cache"}, TENSORS | CONFIGS,
            again=("--force",), caches=("cache/*",)),
    Command("relambda", ("relambda", "out/export", "--lambda", "0.5", "0.9", "--source", "."),
            WHOLE | {"out/export": "export"},
            TENSORS | {f"out/{name}": kind for name, kind in GRAPHS.items()}, keeps=("out/export/*",)),
    Command("check", ("check", "export"), EXPORTED, GRAPHS, writes=False),
    Command("bench", ("bench", "export", "--component", "vae_decoder", "--size", "64x64", "--repeats", "1", "--warmup",
            "0", "--no-compile", "--provider", "cpu"), EXPORTED,
            {"export/vae_decoder/model.onnx": "onnx", "export/lcmmerge.json": "json",
             "export/vae_decoder/config.json": "json"}, writes=False),
    Command("inspect", ("inspect", "base.safetensors"), {"base.safetensors": "base.safetensors"},
            {"base.safetensors": "safetensors"}, writes=False),
    Command("inspect", ("inspect", "style.safetensors", "-v"), {"style.safetensors": "style.safetensors"},
            {"style.safetensors": "safetensors"}, writes=False),
    Command("inspect", ("inspect", "base.ckpt"), {"base.ckpt": "base.ckpt"}, {"base.ckpt": "pickle"}, writes=False),
    Command("extract", ("extract", "fused.safetensors", "base.safetensors", "-o", "out/x.safetensors", "--rank", "2"),
            {"fused.safetensors": "fused.safetensors", "base.safetensors": "base.safetensors"},
            {"fused.safetensors": "safetensors", "base.safetensors": "safetensors"}, again=("--force",)),
    Command("combine", ("combine", "style.safetensors", "0.8", "lcm.safetensors", "1", "-o", "out/both.safetensors"),
            {name: name for name in SOURCES[1:]}, dict.fromkeys(SOURCES[1:], "safetensors"), again=("--force",)),
    Command("verify", ("verify", "fused.safetensors"), WHOLE | {"fused.safetensors": "fused.safetensors"},
            TENSORS | {"fused.safetensors": "safetensors"}, writes=False),
    Command("verify", ("verify", "run"), WHOLE | {"run": "run"},
            {"run/run.json": "json", "run/recipe.yaml.lock": "json", "run/recipe/recipe.safetensors": "safetensors"},
            writes=False),
    *(Command("inspect", ("inspect", name), {name: name}, {name: kind}, writes=False) for name, kind in OTHERS.items()),
    *(Command("fuse", ("fuse", name, "style.safetensors", "--lambda", "1", "0", "--allow-unmatched", "--accept-loss",
              "-o", "out/f", "--threads", "1", *more), {name: name, "style.safetensors": "style.safetensors"},
              {name: kind}, again=("--force",), writes=not more)
      for name, kind in OTHERS.items() for more in ((), ("--dry-run",))),
    Command("accelerators", ("accelerators",), writes=False),
    Command("completion", ("completion", "bash"), writes=False),
    Command("--help", ("--help",), writes=False),
    Command("--help", ("fuse", "--help"), writes=False),
    Command("doctor", ("doctor",), writes=False, varies=("*",)),
)  # fmt: skip
