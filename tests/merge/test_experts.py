"""Models with several denoisers of one structure: terms are for one of them, by name or as they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experts import lora_of_wan, two_experts
from families import folder, single_file, state_of
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.accelerators import ACCELERATORS
from lcmmerge.merge.spec import Merge, Source, Term

Cli = Callable[..., object]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return two_experts(tmp_path / "base")


@pytest.fixture
def loras(tmp_path: Path) -> tuple[Path, Path]:
    return (
        lora_of_wan(tmp_path / "fast_high_noise.safetensors", "diffusion_model.", 1),
        lora_of_wan(tmp_path / "fast-low-noise.safetensors", "", 2),
    )


def merged(lora: Path, tmp_path: Path, cli: Cli) -> dict[str, Tensor]:
    """What a lone expert becomes, of diffusers' names."""
    lone, target = folder(tmp_path / lora.stem, "wan", state_of("wan")), tmp_path / f"{lora.stem}-merged"
    done = cli("fuse", lone, lora, "--lambda", "0.5", "0", "-o", target)
    assert done.code == 0, done.err
    return load(target / "transformer")


def test_modulations(loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    """``diff_m`` is the difference of what no module has."""
    found, before, added = merged(loras[1], tmp_path, cli), state_of("wan"), load_file(loras[1])
    pairs = {"scale_shift_table": "head.diff_m", "blocks.0.scale_shift_table": "blocks.0.diff_m"}
    for name, key in pairs.items():
        assert torch.equal(found[name], before[f"transformer.{name}"] + 0.5 * added[key])


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
    of_high = load_file(lora_of_wan(tmp_path / "high.safetensors", "transformer.", 1))
    save_file(of_high | of_low, both)
    assert cli("fuse", base, both, "--lambda", "0.5", "0", "-o", target).code == 0
    wanted = merged(loras[1], tmp_path, cli)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load(target / "transformer_2").items())


def test_nobody_says_which(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    done = cli("fuse", base, loras[0], "--lambda", "1", "0", "-o", tmp_path / "out")
    done.assert_fault(3, "6 of its 6 keys have no home")
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
    lone = single_file(tmp_path / "model_low_noise.safetensors", "wan", state_of("wan"))
    done = cli("fuse", lone, loras[0], "--lambda", "1", "0", "-o", tmp_path / "out.safetensors")
    done.assert_fault(3, "is called high_noise, and is to be merged into low_noise")


def test_a_lone_checkpoint_for_one_expert(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    """Distilled weights of one expert, as a difference from what they were made from."""
    lone = single_file(tmp_path / "lone.safetensors", "wan", state_of("wan"), "")
    tuned, target = tmp_path / "tuned.safetensors", tmp_path / "out"
    assert cli("fuse", lone, loras[1], "--lambda", "1", "0", "-o", tuned).code == 0
    options = ("--lambda", "1", "1", "--expert", "lcm", "transformer_2", "-o", target)
    assert cli("fuse", base, "--lcm", tuned, *options).code == 0
    assert cli("fuse", base, "--lcm", tuned, "--made-from", lone, *options, "--force").code == 0
    of_low = ("--lambda", "1", "0", "--expert", "style", "transformer_2")
    assert cli("fuse", base, loras[1], *of_low, "-o", tmp_path / "by-lora").code == 0
    wanted = load(tmp_path / "by-lora" / "transformer_2")
    for name, tensor in load(target / "transformer_2").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)
    before = load(base / "transformer")
    assert all(torch.equal(tensor, before[name]) for name, tensor in load(target / "transformer").items())


def test_blocks_of_an_expert(base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    options = ("--lambda", "1", "0", "--expert", "style", "transformer_2", "--block-weights", "style", "B01=0")
    assert cli("fuse", base, loras[1], *options, "-o", tmp_path / "out").code == 0
    found, before = load(tmp_path / "out" / "transformer_2"), load(base / "transformer_2")
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {"scale_shift_table", "blocks.0.scale_shift_table"}


def test_extraction_is_of_one(base: Path, tmp_path: Path, cli: Cli) -> None:
    """Both would have the same names in a LoRA."""
    tuned, target = tmp_path / "tuned", tmp_path / "lora.safetensors"
    shutil.copytree(base, tuned)
    for shard in (tuned / "transformer_2").glob("*.safetensors"):
        save_file({name: 1.1 * tensor for name, tensor in load_file(shard).items()}, shard)
    cli("extract", tuned, base, "-o", target).assert_fault(3, "several experts, and a LoRA's file has names for one")
    done = cli("extract", tuned / "transformer_2", base / "transformer_2", "-o", target)
    assert done.code == 0, done.err


def test_an_accelerator_that_is_a_pair(
    base: Path, loras: tuple[Path, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named once, it is a term for each expert; its files are where the table says."""
    kind = ACCELERATORS["wan22-t2v-4steps"]
    files = {"wan": {"transformer": str(loras[0]), "transformer_2": str(loras[1])}}
    monkeypatch.setattr(type(kind), "files", files)
    target, pair = tmp_path / "out", tmp_path / "pair"
    done = cli("fuse", base, "--accelerator", kind.name, "-o", target)
    assert done.code == 0, done.err
    experts = ("--expert", "style", "transformer", "--expert", "fast-low-noise", "transformer_2")
    options = ("--lambda", "1", "0", "--adapter", loras[1], "1", *experts)
    assert cli("fuse", base, loras[0], *options, "-o", pair).code == 0
    for expert in ("transformer", "transformer_2"):
        found, wanted = load(target / expert), load(pair / expert)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads((target / "model_index.json").read_text())["boundary_ratio"] == kind.sampling.boundary
    checked = cli("verify", target, "--source", tmp_path)
    assert checked.code == 0, checked.err
    lone = single_file(tmp_path / "wan_low_noise.safetensors", "wan", state_of("wan"))
    assert cli("fuse", lone, "--accelerator", kind.name, "-o", tmp_path / "lone-out.safetensors").code == 0
    nameless = single_file(tmp_path / "wan.safetensors", "wan", state_of("wan"))
    done = cli("fuse", nameless, "--accelerator", kind.name, "-o", tmp_path / "none.safetensors")
    done.assert_fault(1, "is a pair of files, one for each expert")


def test_the_command_says_it_again(base: Path, loras: tuple[Path, Path]) -> None:
    merge = Merge(str(base), {"lcm": (str(loras[1]), 1.0)})
    merge = replace(merge, terms=(replace(merge.terms[0], expert="transformer_2", made_from=merge.base),))
    assert merge.command().endswith(f"--made-from {base} --expert lcm transformer_2")
    (again,) = Merge.from_dict(merge.to_dict()).terms
    assert (again.expert, again.made_from) == ("transformer_2", merge.base)


def test_a_source_for_each_expert() -> None:
    """Two terms, of one λ unless one has its own."""
    sources = {"transformer": "high.safetensors", "transformer_2": ("low.safetensors", 0.5)}
    high, low = Source("high.safetensors"), Source("low.safetensors")
    two = [
        Term("lcm-transformer", high, 0.8, expert="transformer"),
        Term("lcm-transformer_2", low, 0.5, expert="transformer_2"),
    ]
    merge = Merge("base", {"lcm": (sources, 0.8)})
    assert merge == Merge("base", two)
    assert Merge.from_dict(merge.to_dict()).to_dict() == merge.to_dict()
    assert merge.accelerated == two[0]
    assert merge.command() == (
        "lcmmerge fuse base low.safetensors --lambda 0.5 0.8 --accelerator high.safetensors "
        "--expert lcm transformer --expert style transformer_2"
    )
    assert [term.strength for term in Merge("base", {"lcm": sources}).terms] == [1.0, 0.5]
