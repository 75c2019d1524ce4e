"""What lcmmerge 0.1 recorded is read for good: ``recorded-0.1.json`` holds the metadata of its files, as it wrote them.

The sources are made here, of numbers whose products and sums are exact: any machine, and any version, makes the bytes
that 0.1 made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
import torch
from fusing import metadata
from pico import lcm_lora, pico, style_lora
from safetensors.torch import load_file, save_file

from lcmmerge.cli import cli as main
from lcmmerge.merge.recorded import read_merge
from lcmmerge.tensors import open_source

if TYPE_CHECKING:
    from conftest import Ran

Cli = Callable[..., "Ran"]
RECORDED = json.loads(Path(__file__).with_name("recorded-0.1.json").read_text("utf-8"))
COMMANDS = {
    "style and accelerator": (
        "base.safetensors", "style.safetensors", "--lambda", "0.75", "1", "--lcm", "lcm.safetensors",
        "--block-weights", "style", "IN00-IN05=0.5,M00=0",
    ),
    "tuned checkpoint": (
        "base.safetensors", "tuned.safetensors", "--tuned-from", "start.safetensors", "--lambda", "0.5", "0",
        "--adapter", "style.safetensors", "0.25", "--dtype", "bf16", "--rounding", "stochastic", "--seed", "7",
    ),
}  # fmt: skip


def exact(path: Path, by: int) -> None:
    """Every number of the file becomes a small multiple of 1 / ``by``, which its name and its place decide."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not name.endswith(".alpha"):
            numbers = (torch.arange(tensor.numel()) * 7 + crc32(f"{path.name} {name}".encode())) % 17 - 8
            tensors[name] = (numbers / by).to(tensor.dtype).reshape(tensor.shape)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("base", "start", "tuned"):
        exact(pico("sd1").single_file(folder / f"{name}.safetensors"), 64)
    exact(style_lora(folder / "style.safetensors", "sd1"), 8)
    exact(lcm_lora(folder / "lcm.safetensors", "sd1"), 8)
    return folder


@pytest.fixture(scope="module", params=COMMANDS)
def merged(request: pytest.FixtureRequest, sources: Path) -> Path:
    """What the command writes now."""
    path = sources / f"{request.param}.safetensors"
    words = [str(sources / word) if word.endswith(".safetensors") else word for word in COMMANDS[request.param]]
    main.main(["fuse", *words, "-o", str(path)], standalone_mode=False)
    return path


@pytest.fixture
def old(merged: Path, tmp_path: Path) -> Path:
    """The file as 0.1 wrote it: the same tensors, in the same order, behind its metadata."""
    return labelled(merged, tmp_path / "old.safetensors", RECORDED[merged.stem])


def labelled(merged: Path, target: Path, words: dict[str, str]) -> Path:
    """A copy with other metadata; each tensor stays where it was."""
    data = merged.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]) | {"__metadata__": words}).encode()
    target.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    return target


def test_a_file_of_0_1_is_verified(old: Path, sources: Path, cli: Cli) -> None:
    """Its sources by their sha256, and its own hash, which is of the tensors that 0.1 made."""
    recorded = json.loads(metadata(old)["sd_merge_recipe"])
    assert (recorded["version"], "method" in recorded) == ("0.1.0", False)
    ran = cli("verify", old, "--source", sources)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{old}: all {len(load_file(old))} tensors are what its recipe gives.\n"


def test_what_it_recorded_is_the_merge_that_is_recorded_now(old: Path, merged: Path) -> None:
    assert read_merge(open_source(old)) == read_merge(open_source(merged))


@pytest.mark.parametrize("tampered", ["tensor", "strength"])
def test_a_file_of_0_1_that_was_tampered_with(tampered: str, old: Path, sources: Path, cli: Cli) -> None:
    if tampered == "tensor":
        with old.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
    else:
        words = metadata(old)
        recipe = json.loads(words["sd_merge_recipe"])
        recipe["terms"][0]["lambda"] += 0.25
        labelled(old, old, words | {"sd_merge_recipe": json.dumps(recipe)})
    ran = cli("verify", old, "--source", sources)
    assert ran.code == 1
    assert ran.err.startswith(f"Error: {old}: ")
    assert "tensors are not what its recipe gives" in ran.err
