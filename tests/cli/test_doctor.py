"""``lcmmerge doctor``: what it says is what the installation and its metadata say."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lcmmerge.doctor import check_up
from lcmmerge.extras import EXTRAS
from lcmmerge.tensors import kept
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.kept import WORTHWHILE

if TYPE_CHECKING:
    from conftest import Ran


def test_it_tells_versions_devices_and_caches(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = cli("doctor").out
    row = next(line for line in said.splitlines() if line.split()[:1] == ["torch"])
    assert row.split()[-1] == version("torch")
    assert "cpu: " in said
    assert "free" in said
    assert "lcmmerge 0" in said


def test_json_holds_the_same(cli: Callable[..., Ran]) -> None:
    found = json.loads(cli("doctor", "--json").out)
    packages = {package["name"]: package for package in found["packages"]}
    assert packages["torch"]["found"] == version("torch")
    assert all(package["fits"] for package in packages.values())
    assert {extra["name"] for extra in found["extras"]} == EXTRAS.keys()


def test_it_tells_what_the_graph_cache_holds(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "graph.onnx").write_bytes(bytes(2_000_000))
    (tmp_path / "deep" / "link.onnx").symlink_to("graph.onnx")
    monkeypatch.setenv("LCMMERGE_CACHE", str(tmp_path))
    assert f"graphs of exports: {tmp_path}, 2.00 MB there, " in cli("doctor").out
    places = {place["what"]: place for place in json.loads(cli("doctor", "--json").out)["places"]}
    assert places["graphs of exports"]["held"] == 2_000_000 + len("graph.onnx")


def test_it_tells_what_the_kept_hashes_take(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tmp_path / "model"
    model.write_bytes(bytes(WORTHWHILE))
    monkeypatch.setattr(kept, "SETTLED", 0)
    sha256_of([model])
    held = sum(path.stat().st_size for path in tmp_path.glob("lcmmerge/*/*"))
    places = {place["what"]: place for place in json.loads(cli("doctor", "--json").out)["places"]}
    assert places["sha256 of large files"]["held"] == held > 0


def test_what_the_tests_need_is_there() -> None:
    extras = {extra.name: extra for extra in check_up().extras}
    assert extras["train"].lacking == ()
