"""Models with several denoisers of one structure: terms are for one of them, by name or as they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import qwen
import torch
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.archs import qwen_image
from lcmmerge.archs.base import architectures
from lcmmerge.merge.spec import Merge
from lcmmerge.registry import entries

Cli = Callable[..., object]


@pytest.fixture(autouse=True)
def two_experts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Qwen-Image as Wan 2.2 is: a denoiser for the high noise levels and one for the low ones."""
    denoiser, *rest = qwen_image.ARCHITECTURE.parts
    high = replace(denoiser, expert="high_noise")
    low = replace(denoiser, name="transformer_2", stored="transformer_2.", expert="low_noise")
    monkeypatch.setattr(qwen_image, "ARCHITECTURE", replace(qwen_image.ARCHITECTURE, parts=(high, low, *rest)))
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    entries.cache_clear()
    architectures.cache_clear()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = qwen.folder(tmp_path / "base")
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = qwen.INDEX | {"transformer_2": qwen.INDEX["transformer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def loras(tmp_path: Path) -> tuple[Path, Path]:
    return (
        qwen.lora(tmp_path / "fast_high_noise.safetensors", "kohya", seed=1),
        qwen.lora(tmp_path / "fast-low-noise.safetensors", "lightning", seed=2),
    )


def merged(lora: Path, tmp_path: Path, cli: Cli) -> dict[str, Tensor]:
    """What a lone expert file becomes."""
    lone, target = qwen.single_file(tmp_path / "lone.safetensors", ""), tmp_path / f"{lora.stem}-merged.safetensors"
    done = cli("fuse", lone, lora, "--lambda", "0.5", "0", "-o", target)
    assert done.code == 0, done.err
    return load_file(target)


def test_a_pair_of_adapters(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    high, low = loras
    target = tmp_path / "out"
    experts = ("--expert", "style", "transformer", "--expert", "fast-low-noise", "transformer_2")
    done = cli("fuse", base, high, "--lambda", "0.5", "0", "--adapter", low, "0.5", *experts, "-o", target)
    assert done.code == 0, done.err
    for expert, lora in (("transformer", high), ("transformer_2", low)):
        found, wanted = load(target / expert), merged(lora, tmp_path, cli)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    checked = cli("verify", target, "--source", base, "--source", high, "--source", low)
    assert checked.code == 0, checked.err


def test_a_file_that_names_both(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    both, target = tmp_path / "both.safetensors", tmp_path / "out"
    of_low = {f"transformer_2.{name}": tensor for name, tensor in load_file(loras[1]).items()}
    of_high = load_file(qwen.lora(tmp_path / "high.safetensors", "diffusers", seed=1))
    save_file(of_high | of_low, both)
    assert cli("fuse", base, both, "--lambda", "0.5", "0", "-o", target).code == 0
    wanted = merged(loras[1], tmp_path, cli)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load(target / "transformer_2").items())


def test_nobody_says_which(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    done = cli("fuse", base, loras[0], "--lambda", "1", "0", "-o", tmp_path / "out")
    done.assert_fault(3, "14 of its 14 keys have no home")
    assert "several experts, transformer and transformer_2: say by --expert for which one it is" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("expert", "said"),
    [
        ("transformer_2", "is called high_noise, and is to be merged into low_noise"),
        ("transformer_3", "no expert 'transformer_3'"),
        ("vae", "no expert 'vae'"),
    ],
)
def test_the_wrong_expert(
    expert: str, said: str, base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli
) -> None:
    options = ("--lambda", "1", "0", "--expert", "style", expert)
    cli("fuse", base, loras[0], *options, "-o", tmp_path / "out").assert_fault(3, said)


def test_a_lone_expert_of_the_other_name(loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    lone = qwen.single_file(tmp_path / "model_low_noise.safetensors")
    done = cli("fuse", lone, loras[0], "--lambda", "1", "0", "-o", tmp_path / "out.safetensors")
    done.assert_fault(3, "is called high_noise, and is to be merged into low_noise")


def test_a_lone_checkpoint_for_one_expert(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    """Distilled weights of one expert, as a difference from what they were made from."""
    lone = qwen.single_file(tmp_path / "lone.safetensors", "")
    tuned, target = tmp_path / "tuned.safetensors", tmp_path / "out"
    assert cli("fuse", lone, loras[1], "--lambda", "1", "0", "-o", tuned).code == 0
    options = ("--lambda", "1", "1", "--expert", "lcm", "transformer_2", "-o", target)
    assert cli("fuse", base, "--lcm", tuned, *options).code == 0
    assert cli("fuse", base, "--lcm", tuned, "--made-from", lone, *options, "--force").code == 0
    wanted = load_file(tuned)
    for name, tensor in load(target / "transformer_2").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)
    before = load(base / "transformer")
    assert all(torch.equal(tensor, before[name]) for name, tensor in load(target / "transformer").items())


def test_blocks_of_an_expert(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    options = ("--lambda", "1", "0", "--expert", "style", "transformer_2", "--block-weights", "style", "B01=0")
    assert cli("fuse", base, loras[1], *options, "-o", tmp_path / "out").code == 0
    found, before = load(tmp_path / "out" / "transformer_2"), load(base / "transformer_2")
    assert {name.split(".")[1] for name in found if not torch.equal(found[name], before[name])} == {"0"}


def test_extraction_is_of_one(base: Path, tmp_path: Path, cli: Cli) -> None:
    """Both would have the same names in a LoRA."""
    tuned, target = tmp_path / "tuned", tmp_path / "lora.safetensors"
    shutil.copytree(base, tuned)
    for shard in (tuned / "transformer_2").glob("*.safetensors"):
        save_file({name: 1.1 * tensor for name, tensor in load_file(shard).items()}, shard)
    cli("extract", tuned, base, "-o", target).assert_fault(3, "several experts, and a LoRA's file has names for one")
    done = cli("extract", tuned / "transformer_2", base / "transformer_2", "-o", target)
    assert done.code == 0, done.err


def test_the_command_says_it_again(base: Path, loras: tuple[Path, Path]) -> None:
    merge = Merge(str(base), {"lcm": (str(loras[1]), 1.0)})
    merge = replace(merge, terms=(replace(merge.terms[0], expert="transformer_2", made_from=merge.base),))
    assert merge.command().endswith(f"--made-from {base} --expert lcm transformer_2")
    (again,) = Merge.from_dict(merge.to_dict()).terms
    assert (again.expert, again.made_from) == ("transformer_2", merge.base)
