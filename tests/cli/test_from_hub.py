"""combine, extract and verify of what is on the Hub: what does not fit is refused by its header, before a download."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import command
from fusing import Files, fuse, metadata
from hub import Hub

Said = list[tuple[int, str]]


@pytest.fixture
def remote(hub: Hub, tmp_path: Path) -> Callable[..., Said]:
    """Commands, one after another with a cache of their own: their codes and what they say of errors."""

    def run(*lines: tuple[object, ...]) -> Said:
        where = {"env": hub.environment(tmp_path / "home"), "cwd": tmp_path}
        ended = [forked.run(command, *map(str, line), **where) for line in lines]
        return [(done.returncode, done.stderr) for done in ended]

    return run


@pytest.fixture
def sd1(hub: Hub, files: Callable[[str], Files]) -> Files:
    pico, other = files("sd1"), files("sdxl")
    hub.add("owner/base", {"base.safetensors": pico.base(), "tuned.safetensors": pico.base("fp32")})
    hub.add("owner/lcm", {"lcm.safetensors": pico.lcm})
    hub.add("owner/style", {"style.safetensors": pico.style})
    hub.add("other/style", {"style.safetensors": other.style})
    hub.add("other/base", {"base.safetensors": other.base()})
    return pico


def downloads(hub: Hub) -> int:
    """How many large files were asked for as a whole."""
    return sum(request.range is None for request in hub.asked("/lfs/"))


def recorded(path: Path) -> Any:
    return json.loads(metadata(path)["sd_merge_recipe"])


@pytest.mark.e2e
def test_combine(hub: Hub, sd1: Files, remote: Callable[..., Said], tmp_path: Path) -> None:
    lcm, target = "hf://owner/lcm/lcm.safetensors", tmp_path / "both.safetensors"
    refused = remote(
        ("combine", "hf://other/style", 1, lcm, 1, "-o", target),
        ("combine", "hf://owner/style", 1, lcm, 1, "-o", target, "--base", "hf://other/base"),
        ("combine", "hf://owner/base/base.safetensors", 1, lcm, 1, "-o", target),
    )
    assert [code for code, _ in refused] == [3, 3, 1]
    assert downloads(hub) == 0
    assert remote(("combine", "hf://owner/style", 0.5, lcm, 1, "-o", target)) == [(0, "")]
    assert downloads(hub) == 2
    assert [term["name"] for term in recorded(target)["terms"]] == ["style", "lcm.safetensors"]


@pytest.mark.e2e
def test_extract(hub: Hub, sd1: Files, remote: Callable[..., Said], tmp_path: Path) -> None:
    base, target = "hf://owner/base/base.safetensors", tmp_path / "lora.safetensors"
    fuse(sd1.base(), tmp_path / "tuned.safetensors", sd1.style)
    hub.add("owner/tuned", {"tuned.safetensors": tmp_path / "tuned.safetensors"})
    refused = remote(
        ("extract", "hf://owner/lcm", base, "-o", target),
        ("extract", "hf://other/base", base, "-o", target),
        ("extract", "hf://owner/tuned", base, "-o", tmp_path / "tuned.safetensors"),
    )
    assert [code for code, _ in refused] == [3, 3, 1]
    assert downloads(hub) == 0
    assert remote(("extract", "hf://owner/tuned", base, "-o", target, "--rank", 4)) == [(0, "")]
    assert downloads(hub) == 2
    assert [recorded(target)[kind]["name"] for kind in ("tuned", "base")] == ["tuned", "base.safetensors"]


@pytest.mark.e2e
def test_verify(hub: Hub, sd1: Files, remote: Callable[..., Said], tmp_path: Path) -> None:
    """A pipeline and a LoRA, merged from the Hub and found there again, by the hashes that it states."""
    hub.add_folder("owner/pipe", sd1.folder())
    lora, merged = "hf://owner/lcm/lcm.safetensors", tmp_path / "merged"
    made, *found = remote(
        ("fuse", "hf://owner/pipe", "--lcm", lora, "-o", merged),
        ("verify", merged, "--source", "hf://owner/pipe", "--source", lora),
        ("verify", merged, "--source", "hf://owner/pipe", "--source", "hf://owner/lcm"),
    )
    assert (made[0], found) == (0, [(0, "")] * 2)
    hub.add_folder("owner/merged", merged)
    hub.add("other/lcm", {"lcm.safetensors": sd1.style})
    before = downloads(hub)
    plain, stranger, nowhere = remote(
        ("verify", "hf://owner/base/base.safetensors"),
        ("verify", "hf://owner/merged", "--source", "hf://owner/pipe", "--source", "hf://other/lcm"),
        ("verify", "hf://owner/merged", "--source", "hf://owner/pipe"),
    )
    assert "records no merge recipe" in plain[1]
    assert "hf://other/lcm@" in stranger[1]
    assert "its sha256 differs" in stranger[1]
    assert "source 'lcm.safetensors' is not here" in nowhere[1]
    assert downloads(hub) == before
    assert remote(("verify", "hf://owner/merged", "--source", "hf://owner/pipe", "--source", lora)) == [(0, "")]
