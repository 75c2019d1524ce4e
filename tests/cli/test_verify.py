from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from fusing import Files, edited, fuse
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import Ran


def test_equal(merged: Path, files: Callable[[str], Files], cli: Callable[..., Ran]) -> None:
    ran = cli("verify", merged, "--source", files("sd1").root)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("tensors are what its recipe gives.\n")
    facts = json.loads(cli("verify", merged, "--source", files("sd1").root, "--json").out)
    assert (facts["equal"], facts["different"], facts["stale_hashes"]) == (facts["tensors"], [], [])


def test_sources_in_this_folder_and_beside_the_file(
    merged: Path, files: Callable[[str], Files], cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (merged.parent / files("sd1").base().name).symlink_to(files("sd1").base())
    assert cli("verify", merged).code == 1
    monkeypatch.chdir(files("sd1").root)
    assert cli("verify", merged).code == 0


def test_tampered(merged: Path, files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    with merged.open("r+b") as file:
        file.seek(-2, 2)
        last = file.read(1)
        file.seek(-2, 2)
        file.write(bytes([last[0] ^ 1]))
    name = list(load_order(merged))[-1]
    ran = cli("verify", merged, "--source", files("sd1").root)
    assert ran.code == 1
    assert name in "".join(ran.out.split())
    assert ran.err.startswith(f"Error: {merged}: 1 of ")
    assert ran.err.splitlines()[0].endswith(name)
    assert ran.err.count("\n") == 2
    ran = cli("verify", merged, "--source", files("sd1").root, "--json")
    assert (ran.code, [item["name"] for item in json.loads(ran.out)["different"]]) == (1, [name])


def load_order(path: Path) -> dict[str, int]:
    """Names by offset, from the reference format: a length and JSON."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__")
    return dict(sorted(((name, entry["data_offsets"][1]) for name, entry in header.items()), key=lambda item: item[1]))


def test_faults(merged: Path, files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    sd1 = files("sd1")
    cases = {
        "no such file": ("verify", "nowhere.safetensors"),
        "records no merge recipe": ("verify", sd1.base()),
        f"source '{sd1.base().name}' is not here": ("verify", merged),
        "its sha256 differs": ("verify", merged, "--source", tmp_path / "others", "--source", sd1.base()),
        "there is none here": ("verify", merged, "--source", sd1.root, "--device", "cuda:77"),
    }
    (tmp_path / "others").mkdir()
    edited(sd1.style, tmp_path / "others" / sd1.style.name, **{next(iter(load_file(sd1.style))): torch.ones(1)})
    for message, arguments in cases.items():
        ran = cli(*arguments)
        assert (ran.code, ran.out) == (1, "")
        assert message in ran.err
        assert ran.err.count("\n") == 2  # the cause, the cure


def test_the_merges_that_a_merge_was_made_of(
    merged: Path, files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    again, other = tmp_path / "again.safetensors", tmp_path / "one" / "detail.safetensors"
    other.parent.mkdir()
    shutil.copy(files("sd1").style, other)
    fuse(merged, again, other, strengths=(0.1, 0), force=True)
    ran = cli("verify", again, "--source", files("sd1").root, "--source", other.parent)
    assert (ran.code, ran.err) == (0, "")
    assert f"{merged}, of which it was made: all" in ran.out
    facts = json.loads(cli("verify", again, "--json", "--source", files("sd1").root, "--source", other.parent).out)
    assert [item["path"] for item in facts["sources"]] == [str(merged)]
    ran = cli("verify", again, "--source", other.parent)
    assert (ran.code, ran.out.count("its recipe gives")) == (0, 1)
    assert f"{merged} is a merge itself, and not verified" in ran.err
    tampered = load_file(merged)
    name = next(name for name in tampered if name.endswith("to_q.weight"))
    changed = edited(merged, tmp_path / "changed.safetensors", **{name: tampered[name] + 1})
    assert cli("inspect", again).out.count("where merged.safetensors = sd1-fp16.safetensors + 0.8 ×") == 1
    changed.replace(merged)
    ran = cli("verify", again, "--source", files("sd1").root, "--source", other.parent)
    assert ran.code == 1
