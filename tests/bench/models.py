"""Makes the benchmark's files: random values, real names, shapes and sizes.

``python models.py --size sdxl --workdir DIR`` fills ``DIR/sdxl/`` with ``base.safetensors`` (LDM single file, fp16),
``lcm.safetensors`` (rank 64, alpha 8, the official LCM-LoRA's grammar and targets), ``style.safetensors`` (rank 32,
kohya's grammar, the U-Net's attention blocks and the text encoders), ``touched.json`` (what touches what) and
``config/`` (a diffusers folder without weights). A transformer's files are in bf16, its LoRAs in diffusers' grammar
without alpha: the style's on the attention, the accelerator's on the MLPs, too. Files that are already there are kept.
Memory stays under 1 GB.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import numpy as np
from plainfile import Layout, write_plain
from sizes import SIZES, Shape, Size, TransformerSize, canonical_shapes

from lcmmerge.archs import Slot, architectures

LCM_RANK, STYLE_RANK, ALPHA = 64, 32, 8.0
# The layers that LCM-LoRA trains (arXiv:2311.05556; the list is the public training script's).
LCM_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
STYLE_TARGETS = (*LCM_TARGETS[:8], "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
BLOCK_ELEMENTS = 2**25  # 64 MiB of fp16
STD = 0.02  # of weights and of factors: then std ΔW = alpha / rank · √rank · STD², which is 2–3% of W's


def random_bytes(dtype: str = "F16") -> Callable[[str, int], Iterator[memoryview]]:
    """A ``data_of`` for :func:`write_plain`: one random block, read from an offset that the tensor's name gives."""
    generator = np.random.default_rng(0)
    block = np.empty(BLOCK_ELEMENTS, dtype=np.float16 if dtype == "F16" else np.uint16)
    for part in np.split(block, 8):
        numbers = generator.standard_normal(len(part), dtype=np.float32) * np.float32(STD)
        part[:] = numbers if dtype == "F16" else numbers.view(np.uint32) >> 16
    data = memoryview(block).cast("B")

    def data_of(name: str, nbytes: int) -> Iterator[memoryview]:
        if name.endswith(".alpha"):
            yield memoryview(struct.pack("<e", ALPHA))
            return
        if name.endswith("position_ids"):
            yield memoryview(np.arange(nbytes // 8, dtype="<i8")).cast("B")
            return
        start = zlib.crc32(name.encode()) % BLOCK_ELEMENTS * 2
        while nbytes:
            chunk = data[start : start + nbytes]
            yield chunk
            nbytes -= len(chunk)
            start = 0

    return data_of


def base_layout(size: Size, slots: Mapping[str, Slot], shapes: dict[str, Shape]) -> Layout:
    """The single file's tensors: names are lcmmerge's key map's, shapes the models' own."""
    layout: dict[str, tuple[str, Shape]] = dict(size.extras)
    for parameter, shape in shapes.items():
        slot = slots[parameter]
        layout[slot.stored] = ("F16", slot.view.stored_shape(shape))
    return layout


def lora_layout(keys: dict[str, str], shapes: dict[str, Shape], rank: int) -> Layout:
    """``keys``: canonical weight → the LoRA's module key."""
    layout: dict[str, tuple[str, Shape]] = {}
    for parameter, key in keys.items():
        outputs, *inputs = shapes[parameter]
        layout[f"{key}.lora_up.weight"] = ("F16", (outputs, rank, *[1] * len(inputs[1:])))
        layout[f"{key}.lora_down.weight"] = ("F16", (rank, *inputs))
        layout[f"{key}.alpha"] = ("F16", ())
    return layout


def lcm_keys(shapes: dict[str, Shape]) -> dict[str, str]:
    return {
        parameter: "lora_unet_" + _flat(parameter.removeprefix("unet."))
        for parameter in shapes
        if parameter.startswith("unet.") and _targeted(parameter, LCM_TARGETS)
    }


def style_keys(size: Size, slots: Mapping[str, Slot], shapes: dict[str, Shape]) -> dict[str, str]:
    keys = {}
    for parameter in shapes:
        component, _, name = parameter.partition(".")
        if not _targeted(parameter, STYLE_TARGETS):
            continue
        if component == "unet" and ".attentions." in name:
            ldm_name = slots[parameter].stored.removeprefix("model.diffusion_model.")
            keys[parameter] = "lora_unet_" + _flat(ldm_name if size.ldm_style else name)
        elif component in size.text_prefixes:
            keys[parameter] = size.text_prefixes[component] + _flat(name)
    return keys


def _targeted(parameter: str, targets: tuple[str, ...]) -> bool:
    return parameter.endswith(tuple(f".{target}.weight" for target in targets))


def _flat(name: str) -> str:
    return name.removesuffix(".weight").replace(".", "_")


def write_configs(size: Size, folder: Path) -> None:
    """What diffusers needs beside a single file to load it offline. Tokenizers are left out: nothing here uses one."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig

    index: dict[str, object] = {"_class_name": size.pipeline}
    with torch.device("meta"):
        UNet2DConditionModel(**size.unet).save_config(folder / "unet")
        AutoencoderKL(**size.vae).save_config(folder / "vae")
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_config(
        folder / "scheduler"
    )
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    for name, config in size.text_encoders.items():
        CLIPTextConfig(**config).save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTextModel" if name == "text_encoder" else "CLIPTextModelWithProjection"]
        index[name.replace("text_encoder", "tokenizer")] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def make_transformer(size: TransformerSize, folder: Path) -> None:
    import diffusers
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    shapes, data_of = canonical_shapes(size), random_bytes("BF16")
    slots = architectures()[size.arch].keymap("single-file").slots
    base = {slots[name].stored: ("BF16", slots[name].view.stored_shape(shape)) for name, shape in shapes.items()}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2 and re.search(r"\.\d+\.", name)]
    attention = {name for name in matrices if re.search(r"\.(attn|attention)\.", name)}
    mlp = re.compile(r"\.(ff|ff_context|feed_forward|\w+_mlp|proj_\w+)\.")
    every = attention | set(filter(mlp.search, matrices))
    write_plain(folder / "base.safetensors", base, data_of)
    for adapter, names, rank in (("lcm", every, LCM_RANK), ("style", attention, STYLE_RANK)):
        layout: dict[str, tuple[str, Shape]] = {}
        for name in sorted(names):
            outputs, inputs = shapes[name]
            layout[f"{name.removesuffix('.weight')}.lora_B.weight"] = ("BF16", (outputs, rank))
            layout[f"{name.removesuffix('.weight')}.lora_A.weight"] = ("BF16", (rank, inputs))
        write_plain(folder / f"{adapter}.safetensors", layout, data_of)
    touched = [
        {
            "parameter": name,
            "stored": slots[name].stored,
            "first_row": slots[name].view.rows(slots[name].view.stored_shape(shapes[name])[0])[0][0],
            "shape": shapes[name],
            "lcm": name.removesuffix(".weight"),
            "style": name.removesuffix(".weight") if name in attention else None,
        }
        for name in sorted(every)
    ]
    (folder / "touched.json").write_text(json.dumps(touched))
    with torch.device("meta"):
        getattr(diffusers, size.module)().save_config(folder / "config" / "transformer")


def make(size: Size, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = canonical_shapes(size)
    slots = architectures()[size.arch].keymap("single-file").slots
    lcm, style = lcm_keys(shapes), style_keys(size, slots, shapes)
    data_of = random_bytes()
    write_plain(folder / "base.safetensors", base_layout(size, slots, shapes), data_of)
    write_plain(folder / "lcm.safetensors", lora_layout(lcm, shapes, LCM_RANK), data_of)
    write_plain(folder / "style.safetensors", lora_layout(style, shapes, STYLE_RANK), data_of)
    touched = [
        {
            "parameter": parameter,
            "stored": slots[parameter].stored,
            "first_row": slots[parameter].view.begin * shape[0],
            "shape": shape,
            "lcm": lcm.get(parameter),
            "style": style.get(parameter),
        }
        for parameter, shape in shapes.items()
        if parameter in lcm or parameter in style
    ]
    (folder / "touched.json").write_text(json.dumps(touched))
    write_configs(size, folder / "config")


@click.command(help="Make the benchmark's files of one size.")
@click.option("--size", type=click.Choice(list(SIZES)), required=True)
@click.option("--workdir", type=click.Path(path_type=Path), required=True)
def main(size: str, workdir: Path) -> None:
    chosen = SIZES[size]
    if isinstance(chosen, TransformerSize):
        make_transformer(chosen, workdir / size)
    else:
        make(chosen, workdir / size)


if __name__ == "__main__":
    main()
