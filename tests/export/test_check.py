"""The rules that graphs are held to, each by graphs that break it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from running import exact
from safetensors.torch import load_file, save_file

from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError, NotFoundError
from lcmmerge.export import rtx
from lcmmerge.export.check import check
from lcmmerge.output import Output

QUIET = Output(quiet=True)
ROOT = Path(__file__).parents[2]
WEIGHTS = "vae_decoder/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def untouched(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


@pytest.fixture
def export(untouched, tmp_path):
    return shutil.copytree(untouched, tmp_path / "export")


def broken(folder):
    """(graph, rule, what) of each finding."""
    return [(item.graph, item.rule, item.what) for item in check(folder, QUIET).broken]


@pytest.mark.e2e
def test_an_export_keeps_every_rule(untouched):
    report = check(untouched, QUIET)
    assert report.broken == ()
    assert len(report.graphs) == 6
    report.check()


def moved(weights, export):
    weights.rename(weights.with_name("elsewhere"))


def truncated(weights, export):
    os.truncate(weights, weights.stat().st_size - 1)


def of_another_architecture(weights, export):
    shutil.copyfile(export / "unet" / weights.name, weights)


def of_another_dtype(weights, export):
    tensors = {name: tensor.double() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})


def symlinked(weights, export):
    weights.rename(weights.with_name("elsewhere"))
    weights.symlink_to("elsewhere")


FAULTS = {
    moved: ("places", "which is not there"),
    truncated: ("places", "it is truncated"),
    of_another_architecture: ("link", "it is another model's"),
    of_another_dtype: ("link", "is F64"),
    symlinked: ("places", "a symbolic link"),
}


@pytest.mark.e2e
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_the_graphs(fault, export):
    fault(export / WEIGHTS, export)
    ((graph, rule, what),) = broken(export)
    assert (graph, rule) == ("vae_decoder/model.onnx", FAULTS[fault][0])
    assert FAULTS[fault][1] in what


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda shapes: shapes.pop("sample"), "input 'sample': has a free axis, and no shapes"),
        (lambda shapes: shapes["sample"].reverse(), "input 'sample': axis "),
        (lambda shapes: shapes["sample"][0].pop(), "is not given three shapes"),
        (lambda shapes: shapes["sample"][1].__setitem__(1, 9), "axis 1 goes from 4 over 9 to 4"),
        (lambda shapes: [shape.__setitem__(1, 9) for shape in shapes["sample"]], "axis 1 is 4 in the graph, and not"),
        (lambda shapes: shapes.update(other=[[1], [1], [1]]), "the graph has no input 'other'"),
    ],
)
def test_profiles(change, said, export):
    manifest = export / "lcmmerge.json"
    content = json.loads(manifest.read_text())
    change(content["profiles"]["dynamic"]["shapes"]["unet"])
    manifest.write_text(json.dumps(content))
    found = broken(export)
    assert [item[:2] for item in found] == [(f"unet/model{kind}.onnx", "profiles") for kind in ("", ".fused")]
    assert said in found[0][2]
    assert "profile dynamic" in found[0][2]


def foreign(path, *nodes, initializers=(), inputs=("x",), kind=TensorProto.FLOAT, location=None):
    """A graph from elsewhere, x → y; its first initializer at ``location`` where one is given."""
    ends = [helper.make_tensor_value_info(name, kind, [2]) for name in (*inputs, "y")]
    graph = helper.make_graph(list(nodes), "graph", ends[:-1], ends[-1:], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if location is not None:
        tensor = model.graph.initializer[0]
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": str(len(raw))}.items():
            tensor.external_data.add(key=key, value=value)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def node(operator, *inputs, output="y", **attributes):
    return helper.make_node(operator, inputs, [output], name=f"the_{operator}", **attributes)


W = numpy_helper.from_array(np.ones(2, np.float32), "w")
DOUBLE = numpy_helper.from_array(np.ones(2), "w")
LARGE = numpy_helper.from_array(np.array([2**31]), "w")
BRANCH = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["z"])], "branch", [], [helper.make_tensor_value_info("z", 1, [2])]
)
CONDITION = numpy_helper.from_array(np.array(True), "w")
RULES = {
    "an operator": ([node("Hardmax", "x")], [], "operators", "Hardmax 'the_Hardmax' is of an operator that we do not"),
    "control flow": (
        [node("If", "w", then_branch=BRANCH, else_branch=BRANCH)], [CONDITION],
        "operators", "If 'the_If' is control flow",
    ),
    "a sequence": (
        [node("SequenceConstruct", "x", output="s"), node("ConcatFromSequence", "s", axis=0)], [],
        "operators", "SequenceConstruct 'the_SequenceConstruct' is a sequence",
    ),
    "float64 weights": (
        [node("Cast", "w", to=1, output="v"), node("Add", "x", "v")], [DOUBLE], "types", "'w' is float64",
    ),
    "float64 on the way": (
        [node("Cast", "x", to=11, output="v"), node("Cast", "v", to=1)], [], "types", "Cast 'the_Cast' makes float64",
    ),
    "int64": (
        [node("Cast", "w", to=1, output="v"), node("Add", "x", "v")], [LARGE], "integers", "'w' is 2147483648, which",
    ),
    "int64 in a node": (
        [node("Constant", value=LARGE, output="w"), node("Cast", "w", to=1, output="v"), node("Add", "x", "v")], [],
        "integers", "value of Constant 'the_Constant' is 2147483648",
    ),
    "a wrong type": ([node("Add", "x", "w")], [LARGE], "specification", "the_Add"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules(name, tmp_path):
    nodes, initializers, rule, said = RULES[name]
    foreign(tmp_path / "some" / "model.onnx", *nodes, initializers=initializers)
    found = broken(tmp_path)
    assert [graph for graph, _, _ in found] == ["some/model.onnx"] * len(found)
    assert any(broken == rule and said in what for _, broken, what in found)


def test_the_end_of_a_slice_may_be_any(tmp_path):
    values = {"s": -(2**63), "e": 2**63 - 1}
    starts, ends = (numpy_helper.from_array(np.array([value]), name) for name, value in values.items())
    foreign(tmp_path / "model.onnx", node("Slice", "x", "s", "e"), initializers=[starts, ends])
    assert broken(tmp_path) == []
    foreign(tmp_path / "model.onnx", node("Expand", "x", "e"), initializers=[ends])
    assert "integers" in {rule for _, rule, _ in broken(tmp_path)}


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "folder/../../secret", "..", "", "..\\secret", "C:\\secret"]
)
def test_data_out_of_the_folder_are_refused(location, tmp_path):
    """Nothing is read of such a graph: not even whether the file is there."""
    (tmp_path / "secret").write_bytes(bytes(8))
    path = foreign(tmp_path / "some" / "model.onnx", node("Add", "x", "w"), initializers=[W], location=location)
    for target in (path, path.parent):
        ((graph, rule, what),) = broken(target)
        assert (graph, rule) == ("model.onnx", "places")
        assert f"are at {location!r}, out of the graph's folder" in what
        with pytest.raises(IncompatibleError, match="a rule is broken") as refused:
            check(target, QUIET).check()
        assert refused.value.exit_code == 3


def test_data_of_a_constant_node_are_looked_at_too(tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    foreign(tmp_path / "model.onnx", node("Constant", value=tensor, output="w"), node("Add", "x", "w"))
    assert "value of Constant 'the_Constant' are at '../secret'" in broken(tmp_path)[0][2]


def test_data_beside_the_graph(tmp_path):
    path = foreign(tmp_path / "model.onnx", node("Add", "x", "w"), initializers=[W], location="w.bin")
    (tmp_path / "w.bin").write_bytes(W.raw_data)
    assert broken(path) == []
    (tmp_path / "w.bin").write_bytes(W.raw_data[:-1])
    assert "truncated" in broken(path)[0][2]


def test_an_offset_that_is_no_number(tmp_path):
    path = foreign(tmp_path / "model.onnx", node("Add", "x", "w"), initializers=[W], location="w.bin")
    (tmp_path / "w.bin").write_bytes(W.raw_data)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="offset", value="-4x")
    path.write_bytes(model.SerializeToString())
    assert "an offset or a length that is not a number" in broken(path)[0][2]


def test_fewer_numbers_than_the_shape_says(tmp_path):
    short = TensorProto(name="w", data_type=TensorProto.INT64, dims=[4], raw_data=bytes(8))
    foreign(tmp_path / "model.onnx", node("Add", "x", "w"), initializers=[short])
    found = {rule: what for _, rule, what in broken(tmp_path)}
    assert found["integers"] == "'w' has another number of values than its shape says"


def test_nothing_to_check(tmp_path):
    with pytest.raises(NotFoundError, match="holds no ONNX graph"):
        check(tmp_path, QUIET)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(FormatError, match="is not an ONNX graph"):
        check(tmp_path, QUIET)


STAND_IN = """
import ctypes, os
class ILogger:
    ERROR, INTERNAL_ERROR = 1, 2
class Builder:
    def __init__(self, log): pass
    def create_network(self, flags): return self
class OnnxParser:
    def __init__(self, network, log): pass
    def parse_from_file(self, path):
        print("noise", flush=True)
        if path.endswith("crash.onnx"):
            os.write(2, b"its last words")
            ctypes.string_at(0)
        return True
"""


@pytest.mark.parametrize("crashes", [True, False])
def test_a_builder_that_crashes_is_a_broken_rule(crashes, tmp_path, process):
    """Of the graph that it was given; by a stand-in for TensorRT-RTX that reads address 0."""
    (tmp_path / "tensorrt_rtx_libs.py").touch()
    (tmp_path / "tensorrt_rtx_bindings.py").write_text(STAND_IN)
    for name in ("sound", "crash" if crashes else "other"):
        foreign(tmp_path / "graphs" / f"{name}.onnx", node("Add", "x", "w"), initializers=[W])
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = process("check", tmp_path / "graphs", "--tensorrt", PYTHONPATH=path)
    if not crashes:
        assert done.code == 0, done.err
        assert done.out.endswith("2 graphs keep every rule. TensorRT-RTX takes them.\n")
        return
    assert (done.code, done.out) == (3, "")
    assert "graphs: a rule is broken" in done.err
    assert "  crash.onnx: builder: the process that was to build it ended with SIGSEGV: its last words\n" in done.err
    assert "sound.onnx: builder" not in done.err


def have_rtx():
    try:
        rtx.bindings()
    except LcmMergeError:
        return False
    return True


@pytest.mark.e2e
@pytest.mark.skipif(have_rtx(), reason="TensorRT-RTX is installed")
def test_tensorrt_is_an_extra(untouched):
    with pytest.raises(LcmMergeError, match="not installed here: tensorrt_rtx_bindings") as refused:
        check(untouched, QUIET, tensorrt=True)
    assert refused.value.hint.startswith("pip install")


@pytest.mark.skipif(not have_rtx(), reason="TensorRT-RTX is not installed")
class TestTensorRT:
    """The real parser and builder, on tiny graphs."""

    def test_it_builds(self, tmp_path):
        path = foreign(tmp_path / "model.onnx", node("Add", "x", "w"), initializers=[W])
        built = rtx.build(path, {})
        assert (built.stage, built.problems) == ("builder", ())
        assert built.nbytes > 1000

    def test_what_its_parser_refuses(self, tmp_path):
        path = foreign(tmp_path / "model.onnx", node("Det", "x"))
        (problem,) = rtx.build(path, {}).problems
        assert problem.startswith("Det 'the_Det': ")

    def test_the_encoder_of_an_export(self, export):
        manifest = json.loads((export / "lcmmerge.json").read_text())
        profile = manifest["profiles"]["dynamic"]["shapes"]["vae_encoder"]
        built = rtx.build(export / "vae_encoder" / "model.onnx", profile)
        assert built.problems == ()


