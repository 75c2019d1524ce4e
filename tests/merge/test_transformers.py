"""Diffusion transformers, merged by the commands. Oracles: PEFT's merge in diffusers' own class, and their readers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import qwen
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

DIALECTS = ("lightning", "diffusers", "comfy", "kohya", "peft")
Cli = Callable[..., object]


def peft_merged(loras: dict[Path, float]) -> dict[str, Tensor]:
    """What PEFT's own layers make of LoRAs in diffusers' names, times λ."""
    model = copy.deepcopy(qwen.transformer())
    for number, (path, strength) in enumerate(loras.items()):
        model.load_lora_adapter(load_file(path), prefix="transformer", adapter_name=f"a{number}")
        model.set_adapters([f"a{number}"], [strength])
        model.fuse_lora(adapter_names=[f"a{number}"])
        model.unload_lora()
    return model.state_dict()


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, Tensor]:
    style = qwen.lora(tmp_path / "style-diffusers.safetensors", "diffusers", seed=1)
    fast = qwen.lora(tmp_path / "fast-diffusers.safetensors", "diffusers", seed=2)
    return peft_merged({style: 0.8, fast: 0.75})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("begin", ["", "model.diffusion_model."])
def test_a_single_file(dialect: str, begin: str, expected: dict[str, Tensor], tmp_path: Path, cli: Cli) -> None:
    base = qwen.single_file(tmp_path / "base.safetensors", begin)
    style = qwen.lora(tmp_path / "style.safetensors", dialect, seed=1)
    fast = qwen.lora(tmp_path / "fast.safetensors", "lightning", seed=2)
    target = tmp_path / "out.safetensors"
    done = cli("fuse", base, style, "--lcm", fast, "--lambda", "0.8", "0.75", "-o", target)
    assert done.code == 0, done.err
    found = load_file(target)
    assert found.keys() == {begin + name for name in expected}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[begin + name], tensor, rtol=1e-5, atol=1e-5)
    checked = cli("verify", target)
    assert checked.code == 0, checked.err


def test_a_folder_with_shards(expected: dict[str, Tensor], tmp_path: Path, cli: Cli) -> None:
    base, target = qwen.folder(tmp_path / "base"), tmp_path / "out"
    style = qwen.lora(tmp_path / "style.safetensors", "peft", seed=1)
    fast = qwen.lora(tmp_path / "fast.safetensors", "lightning", seed=2)
    done = cli("fuse", base, style, "--lcm", fast, "--lambda", "0.8", "0.75", "-o", target)
    assert done.code == 0, done.err
    model = QwenImageTransformer2DModel.from_pretrained(target / "transformer", local_files_only=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    assert len(list((target / "transformer").glob("*.safetensors"))) > 2
    for kind, name in ((AutoencoderKLQwenImage, "vae"), (Qwen2_5_VLForConditionalGeneration, "text_encoder")):
        read = kind.from_pretrained(target / name, local_files_only=True).state_dict()
        before = kind.from_pretrained(base / name, local_files_only=True).state_dict()
        assert all(torch.equal(tensor, before[key]) for key, tensor in read.items())
    assert names(target / "vae") == names(base / "vae")


def test_bfloat16_is_rounded_once(tmp_path: Path, cli: Cli) -> None:
    base = qwen.single_file(tmp_path / "base.safetensors", dtype=torch.bfloat16)
    style = qwen.lora(tmp_path / "style.safetensors", "diffusers")
    assert cli("fuse", base, style, "--lambda", "1", "0", "-o", tmp_path / "out.safetensors").code == 0
    found, before, lora = load_file(tmp_path / "out.safetensors"), load_file(base), load_file(style)
    for name, tensor in before.items():
        key = "transformer." + name.removeprefix("model.diffusion_model.").removesuffix(".weight")
        wanted = tensor.double()
        if f"{key}.lora_B.weight" in lora:
            wanted = wanted + lora[f"{key}.lora_B.weight"].double() @ lora[f"{key}.lora_A.weight"].double()
        nearest = wanted.bfloat16()
        near = (found[name].double() - wanted).abs() <= (nearest.double() - wanted).abs() * 1.001 + 1e-6
        assert bool(near.all())


def test_block_weights(tmp_path: Path, cli: Cli) -> None:
    base, style = qwen.single_file(tmp_path / "base.safetensors"), qwen.lora(tmp_path / "s.safetensors", "diffusers")
    target = tmp_path / "out.safetensors"
    options = ("--lambda", "1", "0", "--block-weights", "style", "B01=0", "-o", target)
    assert cli("fuse", base, style, *options).code == 0
    found, before = load_file(target), load_file(base)
    moved = {name.split(".")[3] for name in before if not torch.equal(found[name], before[name])}
    assert moved == {"0"}
    wrong = cli("fuse", base, style, *("IN04=0" if option == "B01=0" else option for option in options), "--force")
    wrong.assert_fault(2, "no block 'IN04'; the blocks are BASE, B00, B01")


def test_extract_and_combine(tmp_path: Path, cli: Cli) -> None:
    """A LoRA that was baked in comes out again, and two of them add up."""
    base = qwen.single_file(tmp_path / "base.safetensors")
    style = qwen.lora(tmp_path / "style.safetensors", "diffusers")
    tuned = tmp_path / "tuned.safetensors"
    assert cli("fuse", base, style, "--lambda", "1", "0", "-o", tuned).code == 0
    lora = tmp_path / "lora.safetensors"
    done = cli("extract", tuned, base, "--rank", qwen.RANK, "--dtype", "fp32", "-o", lora)
    assert done.code == 0, done.err
    again = tmp_path / "again.safetensors"
    assert cli("fuse", base, lora, "--lambda", "1", "0", "-o", again).code == 0
    assert close(load_file(again), load_file(tuned), 1e-4)
    both = tmp_path / "both.safetensors"
    fast = qwen.lora(tmp_path / "fast.safetensors", "lightning", seed=2)
    done = cli("combine", style, "0.8", fast, "0.75", "--dtype", "fp32", "-o", both)
    assert done.code == 0, done.err
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert cli("fuse", base, both, "--lambda", "1", "0", "-o", one).code == 0
    assert cli("fuse", base, style, "--lcm", fast, "--lambda", "0.8", "0.75", "-o", two).code == 0
    assert close(load_file(one), load_file(two), 1e-4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def close(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> bool:
    same = found.keys() == expected.keys()
    return same and all(torch.allclose(found[name], expected[name], rtol=within, atol=within) for name in expected)


def test_what_has_no_home_is_an_error(tmp_path: Path, cli: Cli) -> None:
    base = qwen.single_file(tmp_path / "base.safetensors")
    tensors = load_file(qwen.lora(tmp_path / "style.safetensors", "diffusers"))
    for role in ("lora_A", "lora_B"):
        name = f"transformer.transformer_blocks.1.attn.to_q.{role}.weight"
        tensors[name.replace("blocks.1", "blocks.7")] = tensors.pop(name)
    save_file(tensors, tmp_path / "style.safetensors")
    done = cli("fuse", base, tmp_path / "style.safetensors", "-o", tmp_path / "out.safetensors", "--lambda", "1", "0")
    done.assert_fault(3, "1 of its 14 keys have no home in base.safetensors: transformer.transformer_blocks.7.attn")


def test_inspect(tmp_path: Path, cli: Cli) -> None:
    told = json.loads(cli("inspect", qwen.folder(tmp_path / "base"), "--json").out)
    assert (told["architecture"], told["layout"]) == ("qwen_image", "diffusers")
    assert told["parts"].keys() == {"transformer", "vae", "text_encoder"}
    lora = json.loads(cli("inspect", qwen.lora(tmp_path / "lora.safetensors", "lightning"), "--json").out)
    assert lora["architecture"] == "Qwen-Image"
    assert [(part["component"], part["modules"]) for part in lora["parts"]] == [("transformer", 14)]
    shown = cli("inspect", qwen.single_file(tmp_path / "base.safetensors"))
    assert "Qwen-Image, base, component" in shown.out
    assert "LCM-LoRA" not in shown.out


def test_it_is_not_drawn_yet(tmp_path: Path, cli: Cli) -> None:
    done = cli("generate", qwen.folder(tmp_path / "base"), "--prompt", "a fox", "-o", tmp_path / "out")
    done.assert_fault(3, "Qwen-Image is merged here, and not drawn yet")
    assert not (tmp_path / "out").exists()


def test_a_transformer_alone_makes_no_whole_model(tmp_path: Path, cli: Cli) -> None:
    base, style = qwen.single_file(tmp_path / "base.safetensors"), qwen.lora(tmp_path / "s.safetensors", "diffusers")
    done = cli("fuse", base, style, "--layout", "diffusers", "--lambda", "1", "0", "-o", tmp_path / "out",
               "--config-from", qwen.folder(tmp_path / "folder"))  # fmt: skip
    done.assert_fault(3, "the diffusion transformer alone makes no whole model")
    done = cli("fuse", tmp_path / "folder", style, "--layout", "single-file", "--lambda", "1", "0",
               "-o", tmp_path / "out.safetensors")  # fmt: skip
    done.assert_fault(1, "has no name in a single file of Qwen-Image")


def test_a_difference_of_two_checkpoints(tmp_path: Path, cli: Cli) -> None:
    """Also of the parts whose names are kept."""
    base, tuned = qwen.folder(tmp_path / "base"), qwen.folder(tmp_path / "tuned")
    file = tuned / "vae" / "diffusion_pytorch_model.safetensors"
    moved = {name: tensor + 0.25 for name, tensor in load_file(file).items()}
    save_file(moved, file, {"format": "pt"})
    assert cli("fuse", base, tuned, "--lambda", "0.5", "0", "-o", tmp_path / "out").code == 0
    found, before = load(tmp_path / "out"), load(base)
    for name, tensor in before.items():
        wanted = tensor + (0.125 if name.startswith("vae.") else 0)
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)
