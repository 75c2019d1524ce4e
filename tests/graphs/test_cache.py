"""The cache of graphs: what is made once, and what is made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onnxfile import configs, make

from lcmmerge import accelerators
from lcmmerge.draw import presets
from lcmmerge.graphs import graph, lowering
from lcmmerge.graphs.cache import cached, default_folder, parameters, sources
from lcmmerge.graphs.components import PipelinePart, components_of
from lcmmerge.graphs.graph import OPSETS
from lcmmerge.graphs.operators import layers
from lcmmerge.tensors.kept import keep, recall


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> PipelinePart:
    folder = tmp_path_factory.mktemp("configs")
    return components_of(configs("text_encoder", make("text_encoder"), folder))[0]


def test_a_graph_is_made_once_with_its_variant(component: PipelinePart, tmp_path: Path) -> None:
    made = cached(component, torch.float32, "plain", tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name.rpartition("-")[0] for file in files] == [f"text_encoder-{name}" for name in sorted(OPSETS)]
    assert recall(files[-1]) == made
    keep(files[-1], b"from the cache")
    assert cached(component, torch.float32, "plain", tmp_path) == b"from the cache"
    files[-1].write_bytes(files[-1].read_bytes()[:-1])
    assert cached(component, torch.float32, "plain", tmp_path) == made
    assert recall(files[-1]) == made


@pytest.mark.slow("three traces")
def test_another_config_or_dtype_is_another_graph(component: PipelinePart, tmp_path: Path) -> None:
    cached(component, torch.float32, "fused", tmp_path)
    cached(component, torch.float16, "fused", tmp_path)
    cached(replace(component, config=component.config | {"hidden_act": "gelu"}), torch.float32, "fused", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * len(OPSETS)
    origin = replace(component, folder=tmp_path / "elsewhere")  # not what a graph depends on
    cached(origin, torch.float32, "fused", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * len(OPSETS)


def test_a_graph_depends_on_the_code_that_makes_it() -> None:
    modules = (graph, lowering, layers, presets, accelerators)
    assert {Path(module.__file__ or "") for module in modules} <= {*sources()}


def test_parameters_are_kept_too(component: PipelinePart, tmp_path: Path) -> None:
    assert parameters(component, tmp_path) == parameters(component, tmp_path) == component.parameters()
    (file,) = tmp_path.iterdir()
    keep(file, b'{"from": [1, 2]}')
    assert parameters(component, tmp_path) == {"from": (1, 2)}
    assert parameters(replace(component, config=component.config | {"hidden_size": 16}), tmp_path) != {"from": (1, 2)}
    for damaged in (b"", b"{", file.read_bytes().replace(b"2", b"3")):
        file.write_bytes(damaged)
        assert parameters(component, tmp_path) == component.parameters()


def test_a_cache_that_cannot_be_written_is_no_error(component: PipelinePart, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cached(component, torch.float32, "plain", tmp_path / "file" / "cache")


def test_the_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lcmmerge" / "graphs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "lcmmerge" / "graphs"
