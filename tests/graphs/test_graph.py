"""Graphs against the modules that they were made of, by ONNX Runtime against torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporting import graphs
from onnxfile import Graph, configs, export, make
from onnxruntime.quantization import QuantType, quantize_dynamic

from lcmmerge.errors import FormatError, IncompatibleError
from lcmmerge.graphs.cache import cached
from lcmmerge.graphs.components import components_of
from lcmmerge.graphs.graph import OPERATORS, OPSETS, check_operators, graphs_of
from lcmmerge.graphs.lowering import lower
from lcmmerge.tensors.header import read_header

SIZES = ((1, 8, 8), (2, 7, 9), (3, 5, 16))  # batch, height and width in latents
BOUNDS = {"fp32": 1e-5, "fp16": 2e-3}  # of what the graph is to keep
# A part, its component, dtype.
CASES = [
    pytest.param("sd1", "unet", "fp16", marks=pytest.mark.e2e),
    pytest.param("ssd1b-lcm", "unet", "fp32", marks=pytest.mark.e2e),
    ("text_encoder", "text_encoder", "fp32"),
    ("text_encoder_2", "text_encoder_2", "fp16"),
    ("vae", "vae_decoder", "fp32"),
    pytest.param("vae", "vae_encoder", "fp32", marks=pytest.mark.e2e),
]
Exporter = Callable[[str, str, str], dict[str, Graph]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    root = tmp_path_factory.mktemp("graphs")

    @cache
    def run(part: str, name: str, dtype: str) -> dict[str, Graph]:
        folder = root / f"{part}-{name}-{dtype}"
        folder.mkdir()
        return export(part, name, dtype, folder, graphs(tmp_path_factory))

    return run


@pytest.mark.slow("each part is traced by the first test that asks for it")
@pytest.mark.parametrize(("part", "name", "dtype"), CASES)
def test_graph_is_the_module(exported: Exporter, part: str, name: str, dtype: str) -> None:
    """Every variant, at every size: traced at one, it holds at others, odd ones among them."""
    for variant, graph in exported(part, name, dtype).items():
        onnx.checker.check_model(graph.path, full_check=True)
        for size in SIZES:
            errors = graph.errors(*size)
            assert len(errors) == len(graph.component.outputs)
            assert max(errors) <= BOUNDS[dtype], (variant, size, errors)


@pytest.mark.parametrize(("part", "name", "dtype"), CASES)
def test_ports_and_operators(exported: Exporter, part: str, name: str, dtype: str) -> None:
    for variant, graph in exported(part, name, dtype).items():
        session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
        ports = [(port.name, list(port.dims)) for port in graph.component.inputs]
        assert [(port.name, port.shape) for port in session.get_inputs()] == ports
        ports = [(port.name, list(port.dims)) for port in graph.component.outputs]
        assert [(port.name, port.shape) for port in session.get_outputs()] == ports
        model = onnx.load(graph.path, load_external_data=False)
        assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSETS[variant])]
        used = {node.op_type for node in model.graph.node}
        assert used <= OPERATORS
        assert ("Attention" in used) == (variant != "plain")
        assert ("GroupNormalization" in used) == (variant == "grouped" and name == "unet")


@pytest.mark.parametrize(("part", "name", "dtype"), CASES)
def test_parameters_keep_their_names(exported: Exporter, part: str, name: str, dtype: str) -> None:
    """Each is in the weight file, whole, under the name that diffusers and transformers give it."""
    for graph in exported(part, name, dtype).values():
        model = onnx.load(graph.path, load_external_data=False)
        external = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if tensor.external_data}
        assert external == {entry.name: entry.shape for entry in read_header(graph.weights)[0]}
        assert external == graph.component.parameters()
        kept = [tensor for tensor in model.graph.initializer if not tensor.external_data]
        assert sum(len(tensor.raw_data) for tensor in kept) < 77 * 77 * 4 + 1_000  # the causal mask, numbers


@pytest.mark.e2e
def test_onnx_runtimes_quantizer_takes_it(exported: Exporter) -> None:
    """It writes matrices the other way round, which what a graph tells of parameters must not contradict."""
    graph = exported("ssd1b-lcm", "unet", "fp32")["plain"]
    inputs, quantized = graph.inputs(2, 8, 8), graph.path.with_name("int8.onnx")
    quantize_dynamic(graph.path, quantized, weight_type=QuantType.QInt8)
    assert "MatMulInteger" in {node.op_type for node in onnx.load(quantized).graph.node}
    (found,), (expected,) = replace(graph, path=quantized).by_ort(inputs), graph.by_ort(inputs)
    assert 0 < np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


def test_text_encoder_names_are_its_files(exported: Exporter) -> None:
    """transformers 5's module leaves the prefix away that files have."""
    names = exported("text_encoder", "text_encoder", "fp32")["plain"].component.parameters()
    assert all(name.startswith("text_model.") for name in names)
    names = exported("text_encoder_2", "text_encoder_2", "fp16")["plain"].component.parameters()
    assert all(name.startswith(("text_model.", "text_projection.")) for name in names)


@pytest.mark.e2e
def test_bfloat16_is_typed_throughout(tmp_path: Path) -> None:
    """ONNX Runtime's CPU provider runs no bfloat16; the checker infers each type and refuses a mixed one."""
    graphs = export("sdxl", "unet", "bf16", tmp_path, tmp_path)
    for graph in graphs.values():
        onnx.checker.check_model(graph.path, full_check=True)
    model = onnx.load(graphs["plain"].path, load_external_data=False)
    types = {tensor.data_type for tensor in model.graph.initializer if tensor.external_data}
    assert types == {onnx.TensorProto.BFLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    assert {makers[node.input[0]] for node in model.graph.node if node.op_type == "Resize"} == {"Cast"}


SCRIPT = """
import sys, torch
from pathlib import Path
from lcmmerge.graphs.serial import serialise
from lcmmerge.graphs.components import components_of
from lcmmerge.graphs.graph import graphs_of
(component,) = components_of(Path(sys.argv[1]))
sys.stdout.buffer.write(serialise(graphs_of(component, torch.float32, ["fused"])["fused"]))
"""


@pytest.mark.e2e
def test_same_bytes_in_every_process(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = configs("text_encoder", make("text_encoder"), tmp_path)
    (component,) = components_of(folder)
    mine = cached(component, torch.float32, "fused", graphs(tmp_path_factory))
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    ran = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert ran.stdout == mine
    assert b"/site-packages/" not in mine and str(Path.home()).encode() not in mine and b".py" not in mine


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    """torch's, as a new version or another config may bring them, and one of ONNX's."""
    (component,) = components_of(configs("text_encoder", make("text_encoder"), tmp_path))

    class New(torch.nn.Module):
        def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.call = call
            self.register_buffer("table", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.call(x) + (self.table if self.call is torch.sin else 0)

    calls = {"aten.special_i0e": torch.special.i0e, "aten.gelu": torch.nn.GELU("tanh"), "buffer table": torch.sin}
    for name, call in calls.items():
        with pytest.raises(IncompatibleError, match=name):
            lower(torch.export.export(New(call), (torch.empty(2),)), component, 18)
    model = graphs_of(component, torch.float32, ["plain"])["plain"]
    model.graph[3].op_type = "SequenceAt"
    with pytest.raises(IncompatibleError, match="SequenceAt"):
        check_operators(model.graph, component)


def test_configs_of_something_else(tmp_path: Path) -> None:
    folder = configs("text_encoder", make("text_encoder"), tmp_path)
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"hidden_size": 24', '"hidden_size": "wide"'), "utf-8")
    (component,) = components_of(folder)
    with pytest.raises(FormatError, match=r"text_encoder/config\.json"):
        component.module(torch.float32)
    config.write_text("[]", "utf-8")
    with pytest.raises(FormatError, match="not a JSON object"):
        components_of(folder)
    index = folder / "model_index.json"
    index.write_text('{"text_encoder": ["transformers", "T5EncoderModel"]}', "utf-8")
    config.write_text("{}", "utf-8")
    with pytest.raises(IncompatibleError, match="T5EncoderModel"):
        components_of(folder)
    index.write_text('{"tokenizer": ["transformers", "CLIPTokenizer"]}', "utf-8")
    with pytest.raises(IncompatibleError, match="without a part"):
        components_of(folder)


def test_a_config_that_lacks_what_it_needs(tmp_path: Path) -> None:
    folder = configs("vae", make("vae"), tmp_path)
    (folder / "vae" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(FormatError, match=r"describes no vae_decoder \('latent_channels'\)"):
        components_of(folder)
