"""On CUDA a graph runs whole: on the CPU are integers of shapes alone, and nothing is copied between devices.

ONNX Runtime's own CUDA provider decides, over stub libraries, at the newest version and at the oldest that we allow.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import placement
import pytest
from cudastubs import environment
from exporting import cache_home, graphs, shared, write
from filelock import FileLock
from fusing import Files
from merging import merge_of
from onnx import TensorProto, helper
from runtimes import VERSIONS, runtime

pytestmark = pytest.mark.e2e


@pytest.fixture(params=VERSIONS)
def placed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Path → what ``placement`` found, by a version of ONNX Runtime, which is its attribute."""
    cache = cache_home(tmp_path_factory)
    env = environment(runtime(request.param, cache), cache)

    def place(*paths: Path) -> dict[str, Any]:
        command = [sys.executable, placement.__file__, *map(str, paths)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    place.version = request.param
    return place


@pytest.fixture(scope="module")
def exported(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A pico in a dtype, its VAE too, with a whole pipeline of a step."""

    def export(name: str, dtype: str) -> Path:
        folder = shared(tmp_path_factory) / f"placed-{name}-{dtype}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                request = merge_of(str(files(name).folder()), folder, strengths=(1.0, 0.0))
                asked = {"dtype": dtype, "vae_dtype": dtype, "fused": True, "whole": 1, "accelerator": "lcm"}
                write(request, graphs(tmp_path_factory), **asked)
        return folder

    return export


def integers(path: Path) -> set[str]:
    """The nodes that give whole numbers of at most one axis."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    kinds = {value.name: value.type.tensor_type for value in graph.value_info}
    small = {
        name for name, kind in kinds.items() if kind.elem_type == TensorProto.INT64 and len(kind.shape.dim) <= 1
    }
    return {node.name for node in graph.node if small.issuperset(node.output)}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_graphs_stay_on_the_gpu(
    name: str, dtype: str, exported: Callable[[str, str], Path], placed: Callable[..., dict[str, Any]]
) -> None:
    if (placed.version, dtype) == ("oldest", "bf16"):
        pytest.skip("ONNX Runtime's CUDA provider takes bf16 graphs from 1.25 on, and `choose_provider` knows it")
    folder = exported(name, dtype)
    paths = [path for path in folder.rglob("*.onnx") if placed.version != "oldest" or "fused" not in path.name]
    assert len(paths) >= 5
    for path, said in placed(*paths).items():
        assert said["error"] is None, path
        assert said["copies"] == 0, path
        assert {node for _, node in said["cpu"]} <= integers(Path(path)), path
        assert len(said["cuda"]) > 10 * len(said["cpu"]), path


def test_what_cuda_lacks_shows(placed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The check can fail: ArgMax of integers, which is why text encoders have it of floats."""
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], name="cast", to=TensorProto.INT64),
        helper.make_node("ArgMax", ["ids"], ["found"], name="argmax", axis=-1),
        helper.make_node("Cast", ["found"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 9), ("y", 1))]
    graph = helper.make_graph(nodes, "ids", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "a.onnx")
    (said,) = placed(tmp_path / "a.onnx").values()
    assert said["copies"] == 2
    assert ["ArgMax", "argmax"] in said["cpu"]
