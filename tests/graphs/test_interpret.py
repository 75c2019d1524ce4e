"""The interpreter beside ONNX Runtime: every kernel on a node of its own, and whole graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from running import CPU, exact

from lcmmerge.errors import FormatError, IncompatibleError
from lcmmerge.export.bench import example
from lcmmerge.export.runtime import open_session
from lcmmerge.graphs.components import components_of
from lcmmerge.graphs.graph import OPERATORS
from lcmmerge.graphs.interpret import Interpreter
from lcmmerge.graphs.kernels import KERNELS

RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


X, Y, POSITIVE = floats(2, 4, 5), floats(2, 4, 5), np.abs(floats(2, 4, 5)) + 0.1
IMAGE, HEADS = floats(2, 4, 5, 7), floats(2, 3, 6, 4)
SCALAR, TRUE = np.array(2, np.int64), X > 0
NEAREST = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
ZERO = numpy_helper.from_array(np.array([3], np.float32))
# (operator, inputs, attributes), of opset 23; shapes, axes and the like are constants, as in our graphs.
CASES = [
    *((name, [X, Y], {}) for name in ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *((name, [X, Y], {}) for name in ("Max", "Min", "Mul", "Sub")),
    *((name, [X], {}) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "IsNaN", "Neg", "Round")),
    *((name, [X], {}) for name in ("Relu", "Sigmoid", "Sin", "Tanh")),
    *((name, [POSITIVE], {}) for name in ("Log", "Reciprocal", "Sqrt")),
    *((name, [TRUE, ~TRUE], {}) for name in ("And", "Or")),
    ("Not", [TRUE], {}),
    ("Div", [ints(7, -7, 9), ints(2, 2, -4)], {}),
    ("Pow", [POSITIVE, np.array(2.5, np.float32)], {}),
    ("ArgMax", [X], {"axis": -1, "keepdims": 0}),
    ("Attention", [HEADS, HEADS, HEADS], {}),
    ("Attention", [HEADS, HEADS, HEADS, floats(1, 1, 6, 6)], {"scale": 0.3}),
    ("Attention", [HEADS, HEADS, HEADS], {"is_causal": 1}),
    ("Attention", [floats(2, 6, 8), floats(2, 9, 8), floats(2, 9, 8)], {"q_num_heads": 2, "kv_num_heads": 2}),
    ("Cast", [X * 10], {"to": TensorProto.INT64}),
    ("CastLike", [X * 10, SCALAR], {}),
    ("Clip", [X, np.array(-0.5, np.float32), np.array(0.5, np.float32)], {}),
    ("Concat", [X, Y], {"axis": -1}),
    ("Einsum", [X, Y], {"equation": "nij,nkj->nik"}),
    ("Constant", [], {"value": ZERO}),
    ("Constant", [], {"value_ints": [3, 4]}),
    ("ConstantOfShape", [ints(2, 3)], {"value": ZERO}),
    ("Conv", [IMAGE, floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [IMAGE, floats(6, 4, 3, 3)], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("Conv", [IMAGE, floats(6, 2, 1, 1), floats(6)], {"group": 2}),
    ("Expand", [floats(4, 1), ints(2, 1, 5)], {}),
    ("Gather", [X, ints(3, -1)], {"axis": 1}),
    ("GatherND", [X, np.array([[0, 3], [1, 2]])], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Gemm", [floats(3, 4), floats(5, 4), floats(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("GroupNormalization", [IMAGE, floats(4), floats(4)], {"num_groups": 2, "epsilon": 1e-6}),
    ("InstanceNormalization", [IMAGE, floats(4), floats(4)], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, floats(5), floats(5)], {"epsilon": 1e-3}),
    ("MatMul", [X, floats(2, 5, 3)], {}),
    ("Pad", [IMAGE, ints(0, 0, 1, 0, 0, 0, 2, 3)], {}),
    ("Range", [ints(1)[0], ints(9)[0], ints(3)[0]], {}),
    ("ReduceMean", [X, ints(-1)], {"keepdims": 0}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Resize", [IMAGE, None, np.array([1, 1, 2, 2], np.float32)], NEAREST),
    ("Resize", [IMAGE, None, None, ints(2, 4, 9, 13)], NEAREST),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("Slice", [X, ints(1, -3), ints(2**63 - 1, 2), ints(1, 2)], {}),
    ("Slice", [X, ints(-(2**63)), ints(-2), ints(2), ints(2)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("Split", [X, ints(1, 3)], {"axis": 1}),
    ("Split", [X], {"axis": 1, "num_outputs": 2}),
    ("Squeeze", [floats(1, 2, 1)], {}),
    ("Squeeze", [floats(1, 2, 1), ints(-1)], {}),
    ("Tile", [X, ints(1, 2, 1)], {}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Where", [TRUE, X, Y], {}),
]


def _info(name, value):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def written(path, operator, inputs, attributes, outputs=1, domain=""):
    """A graph of one node: its whole numbers are initializers, the rest are inputs."""
    named = {f"x{place}": value for place, value in enumerate(inputs) if value is not None}
    fixed = {name: value for name, value in named.items() if value.dtype == np.int64}
    fed = {name: value for name, value in named.items() if name not in fixed}
    names = [name if name in named else "" for name in (f"x{place}" for place in range(len(inputs)))]
    results = [f"y{place}" for place in range(outputs)]
    node = helper.make_node(operator, names, results, name="only", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [_info(name, value) for name, value in fed.items()],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(value, name) for name, value in fixed.items()],
    )
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
    return fed


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CASES, ids=[case[0] for case in CASES])
def test_each_kernel_is_onnx_runtimes(operator, inputs, attributes, tmp_path):
    path = tmp_path / "one.onnx"
    fed = written(path, operator, inputs, attributes, outputs=2 if operator == "Split" else 1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    expected = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, fed)
    found = Interpreter(path)({name: torch.from_numpy(value) for name, value in fed.items()})
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5, rtol=1e-5)


def test_every_kernel_is_tested_and_every_operator_has_one():
    assert {case[0] for case in CASES} == KERNELS.keys()
    assert KERNELS.keys() >= OPERATORS


@pytest.fixture(scope="module")
def export(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


@pytest.mark.e2e
@pytest.mark.parametrize("graph", ["model.onnx", "model.fused.onnx"])
@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_a_picos_graphs_are_onnx_runtimes(component, graph, export):
    path = export / component / graph
    if not path.exists():
        assert (component[:3], graph) == ("vae", "model.fused.onnx")
        return
    described = next(item for item in components_of(export) if item.name == component)
    interpreter, session = Interpreter(path), open_session(path, "cpu")
    for size in ((64, 64), (88, 104)):
        inputs = example(described, size, 2, torch.float32, CPU)
        found, expected = interpreter(inputs), session(inputs)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5 * float(tensor.abs().max()), rtol=0)


def test_an_unknown_operator_is_named(tmp_path):
    written(tmp_path / "one.onnx", "Hardmax", [X], {})
    with pytest.raises(IncompatibleError, match="the operator Hardmax of node 'only' is not interpreted"):
        Interpreter(tmp_path / "one.onnx")


def test_another_domains_operator_is_not_ours(tmp_path):
    written(tmp_path / "one.onnx", "Add", [X, Y], {}, domain="com.example")
    with pytest.raises(IncompatibleError, match=r"com\.example::Add"):
        Interpreter(tmp_path / "one.onnx")


def test_an_unknown_attribute_is_named(tmp_path):
    written(tmp_path / "one.onnx", "Softmax", [X], {"novel": 1})
    with pytest.raises(IncompatibleError, match="Softmax 'only': the attribute novel is not interpreted"):
        Interpreter(tmp_path / "one.onnx")


def test_a_way_that_we_do_not_emit(tmp_path):
    written(tmp_path / "one.onnx", "Resize", [IMAGE, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"})
    with pytest.raises(IncompatibleError, match=r"linear.* is not interpreted"):
        Interpreter(tmp_path / "one.onnx")({"x0": torch.from_numpy(IMAGE), "x2": torch.tensor([1.0, 1, 2, 2])})


def test_the_last_of_several_largest_is_not_ours(tmp_path):
    """``ArgMax`` gives the first, unless it is told otherwise."""
    written(tmp_path / "one.onnx", "ArgMax", [X], {"select_last_index": 1})
    with pytest.raises(IncompatibleError, match="ArgMax 'only': select_last_index is not interpreted"):
        Interpreter(tmp_path / "one.onnx")({"x0": torch.from_numpy(X)})


@pytest.mark.parametrize("where", ["initializer", "node"])
def test_a_type_that_torch_does_not_compute_with(where, tmp_path):
    words = helper.make_tensor("w", TensorProto.STRING, [1], [b"fox"])
    node = helper.make_node("Identity", ["w"], ["y"], name="only")
    if where == "node":
        node = helper.make_node("Constant", [], ["y"], name="only", value=words)
    end = helper.make_tensor_value_info("y", TensorProto.STRING, [1])
    graph = helper.make_graph([node], "one", [], [end], [words] if where == "initializer" else [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "one.onnx")
    with pytest.raises(IncompatibleError, match="the type STRING is not interpreted"):
        Interpreter(tmp_path / "one.onnx")({})


def test_a_weight_file_that_ends_early(tmp_path):
    path = tmp_path / "one.onnx"
    tensor = numpy_helper.from_array(floats(64), "w")
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "one", [], [helper.make_tensor_value_info("y", 1, [64])], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert Interpreter(path)({})["y"].shape == (64,)
    (tmp_path / "w.bin").write_bytes(bytes(100))
    with pytest.raises(FormatError, match=r"w.bin: ends before 'w' does"):
        Interpreter(path)


def test_bfloat16(tmp_path):
    """Which ONNX Runtime has no kernels for on the CPU: torch's own is the oracle."""
    value = torch.randn(3, 4).bfloat16()
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 2], torch.randn(4, 2).flatten().tolist())
    ends = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, None) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "one", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "one.onnx")
    stored = torch.tensor(numpy_helper.to_array(weight).astype(np.float32)).bfloat16()
    assert torch.equal(Interpreter(tmp_path / "one.onnx")({"x": value})["y"], value @ stored)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_cuda_is_the_cpu(component, export):
    path = export / component / "model.onnx"
    described = next(item for item in components_of(export) if item.name == component)
    inputs = example(described, (88, 104), 2, torch.float32, CPU)
    found, expected = Interpreter(path, "cuda")(inputs), Interpreter(path)(inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].cpu(), tensor, atol=1e-3 * float(tensor.abs().max()), rtol=0)
