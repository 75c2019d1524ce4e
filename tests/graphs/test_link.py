"""Links: what a graph says of its weight file, and what the file is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError, NotFoundError
from lcmmerge.graphs.link import check_link, link

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.ones(3), "other": torch.zeros(2)}


def unlinked(location: str = "", dtype: int = TensorProto.FLOAT) -> bytes:
    """y = x aᵀ + b, its parameters somewhere."""
    tensors = []
    for name, shape in (("a.weight", (3, 4)), ("b.bias", (3,))):
        tensor = TensorProto(name=name, dims=shape, data_type=dtype, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        tensors.append(tensor)
    ports = [helper.make_tensor_value_info(name, dtype, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    node = helper.make_node("Gemm", ["x", "a.weight", "b.bias"], ["y"], transB=1)
    graph = helper.make_graph([node], "line", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A linked one, beside its weights."""
    weights, path = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_file(TENSORS, weights)
    path.write_bytes(link(unlinked(), weights))
    return path


def test_a_link_is_the_tensors(graph: Path) -> None:
    """onnx reads through it what safetensors reads."""
    check_link(graph)
    onnx.checker.check_model(graph, full_check=True)
    read = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(graph).graph.initializer}
    stored = load_file(graph.parent / "model.safetensors")
    assert read.keys() == {"a.weight", "b.bias"}
    assert all((array == stored[name].numpy()).all() for name, array in read.items())


def test_new_values_leave_the_graph_as_it_is(graph: Path) -> None:
    """As after another λ: the same names, shapes and dtypes."""
    before, weights = graph.read_bytes(), graph.parent / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in TENSORS.items()}, weights)
    check_link(graph)
    assert link(before, weights) == before


def replace(weights: Path, **changes: torch.Tensor) -> None:
    save_file(TENSORS | {name.replace("_", "."): tensor for name, tensor in changes.items()}, weights)


def test_weights_of_another_kind_are_refused(graph: Path) -> None:
    weights = graph.parent / "model.safetensors"
    cases = {
        "'a.weight' is F16": {"a_weight": TENSORS["a.weight"].half()},
        r"'a.weight' is F32 \[3, 5\], in the graph F32 \[3, 4\]": {"a_weight": torch.ones(3, 5)},
        "'a.weight' is at another place": {"a": torch.ones(1)},
    }
    for message, changes in cases.items():
        replace(weights, **changes)
        with pytest.raises(IncompatibleError, match=message):
            check_link(graph)
    save_file({"a.weight": TENSORS["a.weight"]}, weights)
    with pytest.raises(IncompatibleError, match=r"has no 'b\.bias'"):
        link(unlinked(), weights)


def test_weights_cut_short_or_gone(graph: Path) -> None:
    weights = graph.parent / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(FormatError, match="truncated"):
        check_link(graph)
    weights.rename(graph.parent / "elsewhere.safetensors")
    with pytest.raises(NotFoundError, match=r"model\.safetensors: no such file"):
        check_link(graph)


@pytest.mark.parametrize(
    "location", ["../w.safetensors", "/etc/passwd", "sub/../../w", "..", "", "C:\\w", "sub\\w", "./w"]
)
def test_data_out_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(unlinked(location))
    with pytest.raises(FormatError, match="out of its folder"):
        check_link(path)


def test_data_in_an_attribute_are_data(tmp_path: Path) -> None:
    """A graph from elsewhere may hide a path in a node, in a branch of it."""
    tensor = TensorProto(name="t", dims=(1,), data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    path = tmp_path / "foreign.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "hidden", [], [])).SerializeToString())
    with pytest.raises(FormatError, match="out of its folder"):
        check_link(path)


def test_linked_files_are_refused(graph: Path) -> None:
    """As runtimes do: what a link points to may lie anywhere."""
    weights = graph.parent / "model.safetensors"
    weights.rename(graph.parent / "elsewhere")
    weights.symlink_to(graph.parent / "elsewhere")
    with pytest.raises(FormatError, match="symbolic link"):
        check_link(graph)


def test_what_is_no_graph(graph: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        check_link(graph.parent / "none.onnx")
    for garbage in (b"", b"\xff" * 99, json.dumps(list(range(99))).encode()):
        graph.write_bytes(garbage)
        with pytest.raises(LcmMergeError, match="is not an ONNX graph"):
            check_link(graph)
