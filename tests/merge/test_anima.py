"""Anima: Cosmos-Predict 2 with a network of its own between text encoder and blocks, which adapters reach.

Oracles: diffusers' AnimaTextConditioner, its converter of Anima's LoRAs, and the same sums in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AnimaTextConditioner
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_anima_lora_to_diffusers as convert
from families import converted, folder, state_of, stored
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.archs import architectures, identify, names_of
from lcmmerge.tensors import open_source

Cli = Callable[..., object]
State = dict[str, Tensor]
RANK, ADAPTER, CONDITIONER = 3, "llm_adapter.", "text_conditioner."
TINY = {"source_dim": 12, "target_dim": 12, "model_dim": 16, "num_layers": 2, "num_attention_heads": 2,
        "target_vocab_size": 10}  # fmt: skip


def conditioner() -> State:
    generator = torch.Generator().manual_seed(6)
    shapes = {name: tensor.shape for name, tensor in AnimaTextConditioner(**TINY).state_dict().items()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def conditioner_state() -> State:
    return {CONDITIONER + name: tensor for name, tensor in conditioner().items()}


def single_file(path: Path, begin: str = "net.") -> Path:
    state = stored("cosmos2", state_of("cosmos2")) | {ADAPTER + name: tensor for name, tensor in conditioner().items()}
    save_file({begin + name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def diffusers_reads(state: State, begin: str) -> State:
    """The denoiser by its converter of single files, the conditioner by that of Anima's LoRAs; it has no other."""
    inner = {name.removeprefix(begin): tensor for name, tensor in state.items()}
    denoiser = converted("cosmos2", {name: tensor for name, tensor in inner.items() if not name.startswith(ADAPTER)})
    rest = {f"diffusion_model.{name}": tensor for name, tensor in inner.items() if name.startswith(ADAPTER)}
    return {f"transformer.{name}": tensor for name, tensor in denoiser.items()} | convert(rest)


def whole_folder(path: Path) -> Path:
    folder(path, "cosmos2", state_of("cosmos2"))
    model = AnimaTextConditioner(**TINY)
    model.load_state_dict(conditioner())
    model.save_pretrained(path / "text_conditioner")
    index = json.loads((path / "model_index.json").read_text())
    index["text_conditioner"] = ["diffusers", "AnimaTextConditioner"]
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def adapter(path: Path, begin: str) -> tuple[Path, State]:
    """A LoRA of every matrix of both networks' first blocks, and a difference of every other tensor of the conditioner;
    and ΔW by canonical name.
    """
    generator = torch.Generator().manual_seed(7)
    file: State = {}
    delta: State = {}
    inner = "" if begin == CONDITIONER else ADAPTER
    tensors = {(inner, name, CONDITIONER + name): tensor for name, tensor in conditioner().items()}
    name = "blocks.0.self_attn.q_proj.weight"
    if inner:
        canonical = "transformer.transformer_blocks.0.attn1.to_q.weight"
        tensors["", name, canonical] = state_of("cosmos2")[canonical]
    for (inside, name, canonical), tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        key = begin + (f"{inside}{module}".replace(".", "_") if begin.startswith("lora") else f"{inside}{module}")
        if tensor.dim() == 2:
            up = torch.randn(len(tensor), RANK, generator=generator)
            down = torch.randn(RANK, tensor.shape[1], generator=generator)
            file |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.5)}
            delta[canonical] = 0.5 * (up.double() @ down.double())
        else:
            whole = torch.randn(tensor.shape, generator=generator)
            file[f"{key}.{'diff_b' if kind == 'bias' else 'diff'}"] = whole
            delta[canonical] = whole.double()
    save_file(file, path)
    return path, delta


def assert_sums(found: State, delta: State) -> None:
    before = state_of("cosmos2") | conditioner_state()
    assert found.keys() == before.keys() and len(delta) >= len(conditioner())
    for name, tensor in before.items():
        wanted = tensor.double() + 0.8 * delta.get(name, torch.zeros(()))
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-6, msg=name)


def test_names_are_those_of_diffusers_class() -> None:
    with init_empty_weights():
        real = {CONDITIONER + name for name in AnimaTextConditioner().state_dict()}
    arch = architectures()["cosmos2"]
    mapped = {name for name in arch.keymap("diffusers").slots if name.startswith(CONDITIONER)}
    assert real <= mapped
    assert not (mapped - real) & arch.required


@pytest.mark.parametrize("begin", ["net.", "model.diffusion_model.", "diffusion_model.", ""])
def test_diffusers_converter_reads_what_we_read(begin: str, tmp_path: Path) -> None:
    path = single_file(tmp_path / "base.safetensors", begin)
    model = identify(open_source(path))
    assert (model.layout, model.components) == ("component", ("transformer", "text_conditioner"))
    assert not model.leftovers and not model.missing
    state = load_file(path)
    ours = {name: parameter.slot.view.take(state[parameter.info.name]) for name, parameter in model.parameters.items()}
    theirs = diffusers_reads(state, begin)
    assert ours.keys() == theirs.keys()
    assert not [name for name, tensor in ours.items() if not torch.equal(theirs[name], tensor)]


def test_one_that_lacks_a_layer_of_it_says_so(tmp_path: Path) -> None:
    path = single_file(tmp_path / "base.safetensors")
    state = load_file(path)
    del state["net.llm_adapter.blocks.1.mlp.0.weight"]
    save_file(state, path)
    assert identify(open_source(path)).missing == ("text_conditioner.blocks.1.mlp.0.weight",)


BEGINS = ("diffusion_model.", "net.", "transformer.", "lora_unet_", "base_model.model.", "", CONDITIONER)


@pytest.mark.parametrize("begin", BEGINS)
def test_an_adapter_on_a_single_file(begin: str, tmp_path: Path, cli: Cli) -> None:
    base, out = single_file(tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    style, delta = adapter(tmp_path / "style.safetensors", begin)
    done = cli("fuse", base, style, "--lambda", "0.8", "0", "-o", out)
    assert done.code == 0, done.err
    made = load_file(out)
    assert made.keys() == load_file(base).keys()
    assert_sums(diffusers_reads(made, "net."), delta)


@pytest.mark.parametrize("begin", ["lora_unet_", CONDITIONER])
def test_an_adapter_on_a_folder(begin: str, tmp_path: Path, cli: Cli) -> None:
    base, out = whole_folder(tmp_path / "base"), tmp_path / "out"
    style, delta = adapter(tmp_path / "style.safetensors", begin)
    for step in (("fuse", base, style, "--lambda", "0.8", "0", "-o", out), ("verify", out)):
        done = cli(*step)
        assert done.code == 0, done.err
    assert_sums(load(out), delta)


def test_the_alpha_that_diffusers_writes_of_it(tmp_path: Path, cli: Cli) -> None:
    """In the file's metadata, by component; the denoiser's is no other's."""
    told = {"transformer.r": RANK, "transformer.lora_alpha": 12}
    told |= {"text_conditioner.r": RANK, "text_conditioner.lora_alpha": 6}
    modules = {"text_conditioner.blocks.0.mlp.0": 2, "transformer_blocks.0.ff.net.0.proj": 4}
    state = state_of("cosmos2") | conditioner_state()
    for key, scale in modules.items():
        name = f"{key if key.startswith(CONDITIONER) else f'transformer.{key}'}.weight"
        up, down = torch.randn(len(state[name]), RANK), torch.randn(RANK, state[name].shape[1])
        path, out = tmp_path / f"{scale}.safetensors", tmp_path / f"out-{scale}"
        file = {f"{key}.lora_B.weight": up, f"{key}.lora_A.weight": down}
        save_file(file, path, {"lora_adapter_metadata": json.dumps(told)})
        base = tmp_path / "base" if scale > 2 else whole_folder(tmp_path / "base")
        done = cli("fuse", base, path, "--lambda", "1", "0", "-o", out)
        assert done.code == 0, done.err
        torch.testing.assert_close(load(out)[name], state[name] + scale * (up @ down), rtol=1e-5, atol=1e-5)


def test_what_is_extracted_and_combined_has_it(tmp_path: Path, cli: Cli) -> None:
    base, tuned = single_file(tmp_path / "base.safetensors"), tmp_path / "tuned.safetensors"
    style, _ = adapter(tmp_path / "style.safetensors", "lora_unet_")
    assert cli("fuse", base, style, "--lambda", "0.8", "0", "-o", tuned).code == 0
    lora, combined = tmp_path / "lora.safetensors", tmp_path / "combined.safetensors"
    steps = (
        ("extract", tuned, base, "--rank", RANK, "--dtype", "fp32", "-o", lora),
        ("combine", style, "0.8", "--base", base, "--dtype", "fp32", "-o", combined),
    )
    for made, step in zip((lora, combined), steps, strict=True):
        done = cli(*step)
        assert done.code == 0, done.err
        again, wanted = tmp_path / f"again-{made.name}", load_file(tuned)
        done = cli("fuse", base, made, "--lambda", "1", "0", "-o", again)
        assert done.code == 0, done.err
        for name, tensor in load_file(again).items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("key", "home"),
    [
        ("blocks.0.self_attn.q_proj", "transformer.transformer_blocks.0.attn1.to_q"),
        ("lora_unet_blocks_0_mlp_layer1", "transformer.transformer_blocks.0.ff.net.0.proj"),
        ("lora_unet_llm_adapter_blocks_0_mlp_0", "text_conditioner.blocks.0.mlp.0"),
        ("text_conditioner.blocks.0.mlp.0", "text_conditioner.blocks.0.mlp.0"),
        ("lora_unet_blocks_0_mlp_0", ""),  # the conditioner's only by its own name
        ("blocks.0.self_attn.o_proj", ""),
    ],
)
def test_a_blocks_name_is_the_denoisers(key: str, home: str) -> None:
    found = names_of(architectures()["cosmos2"]).find(key)
    assert (found.module if found else "") == home
