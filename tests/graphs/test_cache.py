"""The cache of graphs: what is made once, and what is made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnxfile import configs, make

from lcmmerge import accelerators
from lcmmerge.draw import presets
from lcmmerge.graphs import cache, graph, lowering, proof
from lcmmerge.graphs.cache import cached, default_folder, parameters, sources
from lcmmerge.graphs.components import PipelinePart, components_of
from lcmmerge.graphs.graph import OPSETS
from lcmmerge.graphs.operators import layers
from lcmmerge.graphs.proof import FUSED_ON_CPU, provable
from lcmmerge.tensors.kept import keep, recall


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> PipelinePart:
    folder = tmp_path_factory.mktemp("configs")
    return components_of(configs("text_encoder", make("text_encoder"), folder))[0]


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[PipelinePart]:
    """The parts that a proof was asked for, in a cache where nothing is traced."""
    parts: list[PipelinePart] = []
    monkeypatch.setattr(cache, "prove", lambda part, dtype, opsets: parts.append(part))
    monkeypatch.setattr(cache, "graphs_of", lambda part, dtype, variants: dict.fromkeys(variants))
    monkeypatch.setattr(cache, "serialise", lambda graph: b"a graph")
    return parts


@pytest.mark.usefixtures("proved")
def test_a_graph_is_made_once_with_its_variant(component: PipelinePart, tmp_path: Path) -> None:
    made = cached(component, torch.float32, "plain", tmp_path)
    files = sorted(tmp_path.iterdir())
    names = [file.name.rpartition("-")[0] for file in files]
    assert names == [f"text_encoder-{name}" for name in (*sorted(OPSETS), "proof")]
    file = files[names.index("text_encoder-plain")]
    assert recall(file) == made
    keep(file, b"from the cache")
    assert cached(component, torch.float32, "plain", tmp_path) == b"from the cache"
    file.write_bytes(file.read_bytes()[:-1])
    assert cached(component, torch.float32, "plain", tmp_path) == made
    assert recall(file) == made


def with_config(component: PipelinePart, **fields: Any) -> PipelinePart:
    return replace(component, config={**component.config, **fields})


def test_another_config_or_dtype_is_another_graph(
    component: PipelinePart, proved: list[PipelinePart], tmp_path: Path
) -> None:
    cached(component, torch.float32, "fused", tmp_path)
    cached(component, torch.float16, "fused", tmp_path)
    cached(with_config(component, hidden_act="gelu"), torch.float32, "fused", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * (len(OPSETS) + 1)
    origin = replace(component, folder=tmp_path / "elsewhere")  # not what a graph depends on
    cached(origin, torch.float32, "fused", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * (len(OPSETS) + 1) and len(proved) == 3


def test_a_proof_serves_all_widths_and_depths(
    component: PipelinePart, proved: list[PipelinePart], tmp_path: Path
) -> None:
    cached(component, torch.float32, "plain", tmp_path)
    cached(with_config(component, hidden_size=64, num_hidden_layers=5), torch.float32, "plain", tmp_path)
    assert len(proved) == 1 and proved[0].config["hidden_size"] == 24
    cached(with_config(component, hidden_act="gelu"), torch.float32, "plain", tmp_path)
    assert len(proved) == 2
    cached(replace(component, shrink=None, name="other"), torch.float32, "plain", tmp_path)
    assert len(proved) == 2


def test_torchs_exporter_is_another_maker(
    component: PipelinePart, proved: list[PipelinePart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(part: PipelinePart) -> int:
        cached(part, torch.float32, "plain", tmp_path)
        return len([file for file in tmp_path.iterdir() if "plain" in file.name])

    translated = replace(component, lowered=False)
    assert [made(component), made(translated), made(translated)] == [1, 2, 2]
    monkeypatch.setattr(cache, "version", lambda name: "0.0")
    assert [made(component), made(translated)] == [2, 3]


def test_an_older_runtime_proves_what_it_runs(
    component: PipelinePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not load is made none the less: it is for others."""
    opened, session = [], onnxruntime.InferenceSession

    def open_it(graph: bytes, *arguments: Any, **named: Any) -> Any:
        opened.append(onnx.load_from_string(graph).opset_import[0].version)
        return session(graph, *arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_it)
    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    cached(component, torch.float32, "fused", tmp_path)
    assert opened == [OPSETS["plain"]]
    assert provable(torch.bfloat16, OPSETS) == {"plain": OPSETS["plain"]}
    monkeypatch.setattr(onnxruntime, "__version__", FUSED_ON_CPU)
    assert provable(torch.float16, OPSETS) == OPSETS
    assert provable(torch.bfloat16, OPSETS) == OPSETS | {"plain": 22}


def test_a_graph_depends_on_the_code_that_makes_it() -> None:
    modules = (graph, lowering, proof, layers, presets, accelerators)
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


@pytest.mark.usefixtures("proved")
def test_a_cache_that_cannot_be_written_is_no_error(component: PipelinePart, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cached(component, torch.float32, "plain", tmp_path / "file" / "cache")


def test_the_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lcmmerge" / "graphs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "lcmmerge" / "graphs"
