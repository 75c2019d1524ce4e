"""A diffusers folder that bitsandbytes has quantised: merged into another encoding, and refused without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from bnbfile import layer
from families import class_of, folder, state_of, stored, tiny
from fusing import load
from safetensors.torch import save_file
from torch import Tensor, nn

from lcmmerge.inspection import inspect
from lcmmerge.tensors import open_source

ENCODER = "encoder.block.0.layer.0.SelfAttention.q"
KINDS = ("bnb_int8", "bnb_nf4", "bnb_fp4")
MODULE = "transformer_blocks.0.attn.to_k"
QKV = "double_blocks.0.img_attn.qkv.weight"
CONFIGS = {
    "bnb_int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bnb_nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bnb_fp4": {"load_in_4bit": True},
}
Cli = Callable[..., object]


@dataclass(frozen=True)
class Inputs:
    """``numbers``: the tensors that ``base`` stands for, by canonical name; Δ is exact in float32."""

    base: Path
    lora: Path
    numbers: dict[str, Tensor]
    delta: Tensor


@pytest.fixture(scope="module")
def inputs_of(tmp_path_factory) -> Callable[[str], Inputs]:
    return cache(lambda kind: made(kind, tmp_path_factory.mktemp(kind)))


def made(kind: str, root: Path) -> Inputs:
    """A FLUX.1, every linear of it quantised, one of its text encoder's too, and a LoRA of one."""
    base = folder(root / "base", "flux1", state_of("flux1"))
    part = base / "transformer"
    for file in part.glob("*.safetensors*"):
        file.unlink()
    linears = {f"transformer.{name}" for name, module in tiny("flux1").named_modules() if isinstance(module, nn.Linear)}
    tensors, numbers = {}, {}
    for name, tensor in state_of("flux1").items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in linears:
            quantised = layer(tensor, kind)
            tensors |= {f"{module}.{suffix}": each for suffix, each in quantised.tensors.items()}
            numbers[name] = quantised.numbers
        else:
            tensors[name] = numbers[name] = tensor.bfloat16()
    save_file({name.removeprefix("transformer."): tensor.contiguous() for name, tensor in tensors.items()},
              part / "diffusion_pytorch_model.safetensors")  # fmt: skip
    config = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIGS[kind]}))
    encoder = layer(torch.randn(16, 64, generator=torch.Generator().manual_seed(4)), kind)
    (base / "text_encoder_2").mkdir()
    save_file({f"{ENCODER}.{suffix}": each.contiguous() for suffix, each in encoder.tensors.items()},
              base / "text_encoder_2" / "model.safetensors")  # fmt: skip
    numbers[f"text_encoder_2.{ENCODER}.weight"] = encoder.numbers
    (base / "text_encoder_2" / "config.json").write_text(json.dumps({"quantization_config": CONFIGS[kind]}))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": ["transformers", "T5EncoderModel"]}))
    rows, columns = numbers[f"transformer.{MODULE}.weight"].shape
    generator = torch.Generator().manual_seed(3)
    up = torch.randint(-3, 4, (rows, 1), generator=generator).float() / 16
    down = torch.randint(-3, 4, (1, columns), generator=generator).float() / 16
    lora = root / "lora.safetensors"
    save_file({f"transformer.{MODULE}.lora_B.weight": up, f"transformer.{MODULE}.lora_A.weight": down}, lora)
    return Inputs(base, lora, numbers, up @ down)


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "transformer" / "config.json").read_text())


def expected(inputs: Inputs) -> dict[str, Tensor]:
    name = f"transformer.{MODULE}.weight"
    merged = inputs.numbers | {name: inputs.numbers[name] + inputs.delta}
    return {key: tensor.bfloat16() for key, tensor in merged.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_the_sum_rounded_once(kind, inputs_of, tmp_path, cli: Cli):
    inputs, target = inputs_of(kind), tmp_path / "out"
    done = cli("fuse", inputs.base, inputs.lora, "--lambda", "1", "0", "--encoding", "none", "-o", target)
    assert done.code == 0, done.err
    found, wanted = load(target), expected(inputs)
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == torch.bfloat16 and found[name].equal(wanted[name]) for name in wanted)
    config = config_of(target)
    assert config | {"quantization_config": CONFIGS[kind]} == config_of(inputs.base)
    assert "quantization_config" not in config
    assert json.loads((target / "text_encoder_2" / "config.json").read_text()) == {}
    model = class_of("flux1").from_pretrained(target / "transformer", local_files_only=True, torch_dtype=torch.bfloat16)
    assert model.state_dict()[f"{MODULE}.weight"].equal(wanted[f"transformer.{MODULE}.weight"])
    checked = cli("verify", target, "--source", inputs.base.parent)
    assert checked.code == 0, checked.err


def test_into_other_dtypes_and_gguf(inputs_of, tmp_path, cli: Cli):
    """Which has tensors that are made of several layers' rows."""
    inputs, name = inputs_of("bnb_nf4"), f"transformer.{MODULE}.weight"
    asked = ("fuse", inputs.base, inputs.lora, "--lambda", "1", "0")
    done = cli(*asked, "--encoding", "fp32", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert load(tmp_path / "out")[name].equal(inputs.numbers[name] + inputs.delta)
    done = cli(*asked, "--encoding", "gguf:f32", "--layout", "single-file", "-o", tmp_path / "out.gguf")
    assert done.code == 0, done.err
    found, wanted = open_source(tmp_path / "out.gguf"), inputs.numbers | {name: inputs.numbers[name] + inputs.delta}
    assert found[QKV].read().equal(stored("flux1", {key: tensor.float() for key, tensor in wanted.items()})[QKV])


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_encoding_it_is_refused(kind, inputs_of, tmp_path, cli: Cli):
    inputs = inputs_of(kind)
    done = cli("fuse", inputs.base, inputs.lora, "--lambda", "1", "0", "-o", tmp_path / "out")
    assert done.code == 3
    assert "bitsandbytes" in done.err and "--encoding none" in done.err
    assert "Traceback" not in done.err
    assert not [*tmp_path.iterdir()]


def test_like_a_file_that_lacks_a_layer_that_is_in_bnb(inputs_of, tmp_path, cli: Cli):
    inputs, like = inputs_of("bnb_nf4"), tmp_path / "like"
    cli("fuse", inputs.base, inputs.lora, "--lambda", "1", "0", "--encoding", "fp16", "-o", like)
    done = cli("fuse", inputs.base, inputs.lora, "--lambda", "1", "0", "--like", like, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert load(tmp_path / "out")[f"transformer.{MODULE}.weight"].dtype == torch.float16
    done = cli("fuse", like, inputs.lora, "--lambda", "1", "0", "--like", inputs.base, "-o", tmp_path / "no", "--force")
    assert done.code == 3
    assert "which is only read" in done.err


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_names_it(kind, inputs_of):
    inputs = inputs_of(kind)
    linears = 1 + sum(isinstance(module, nn.Linear) for module in tiny("flux1").modules())
    assert inspect(open_source(inputs.base)).whole.dtypes == {kind: linears, "BF16": len(inputs.numbers) - linears}


def test_what_others_have_quantised_stays_in_their_configs(inputs_of, tmp_path, cli: Cli):
    inputs, base = inputs_of("bnb_nf4"), tmp_path / "base"
    shutil.copytree(inputs.base, base)
    config = base / "transformer" / "config.json"
    config.write_text(json.dumps(config_of(base) | {"quantization_config": {"quant_method": "torchao"}}))
    cli("fuse", base, inputs.lora, "--lambda", "1", "0", "--encoding", "none", "-o", tmp_path / "out")
    assert config_of(tmp_path / "out")["quantization_config"] == {"quant_method": "torchao"}
