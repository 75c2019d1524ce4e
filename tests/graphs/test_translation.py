"""Families beyond our own table of operators, by torch's exporter: the link step, the rules and the proof are ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import save_file

from lcmmerge.graphs.components import PipelinePart, Port
from lcmmerge.graphs.graph import graphs_of
from lcmmerge.graphs.link import check_link, link
from lcmmerge.graphs.proof import prove, random_module
from lcmmerge.graphs.rules import RULES, Graph
from lcmmerge.graphs.serial import serialise

pytestmark = pytest.mark.e2e
WIDE, TEXT = 24, ("batch", "sequence")
SIZE = ("latent_height", "latent_width")
FLUX = {
    "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDE, "pooled_projection_dim": 20, "axes_dims_rope": [4, 6, 6],
    "guidance_embeds": False,
}  # fmt: skip
SD3 = {
    "sample_size": 32, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": WIDE, "caption_projection_dim": 16, "pooled_projection_dim": 20,
    "pos_embed_max_size": 16,
}  # fmt: skip


class Wrapped(torch.nn.Module):
    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


def part(source: Any, config: Mapping[str, Any], inputs: tuple[Port, ...], output: Port, folder: Path) -> PipelinePart:
    names = tuple(port.name for port in inputs)

    def build(config: Mapping[str, Any]) -> torch.nn.Module:
        return Wrapped(source.from_config(dict(config)), names)

    return PipelinePart("transformer", folder, "w.safetensors", config, inputs, (output,), build, lowered=False)


def flux(folder: Path) -> PipelinePart:
    inputs = (
        Port("hidden_states", ("batch", "latent_height", 4)), Port("encoder_hidden_states", (*TEXT, WIDE)),
        Port("pooled_projections", ("batch", 20)), Port("timestep", ("batch",)),
        Port("img_ids", ("latent_height", 3)), Port("txt_ids", ("sequence", 3)),
    )  # fmt: skip
    output = Port("sample", ("batch", "latent_height", 4))
    return part(FluxTransformer2DModel, FLUX, inputs, output, folder)


def sd3(folder: Path) -> PipelinePart:
    inputs = (
        Port("hidden_states", ("batch", 4, 12, 10)), Port("encoder_hidden_states", (*TEXT, WIDE)),
        Port("pooled_projections", ("batch", 20)), Port("timestep", ("batch",)),
    )  # fmt: skip
    return part(SD3Transformer2DModel, SD3, inputs, Port("sample", ("batch", 4, 12, 10)), folder)


@pytest.mark.parametrize("make", [flux, sd3])
def test_a_diffusion_transformer(make: Callable[[Path], PipelinePart], tmp_path: Path) -> None:
    """Beside torch; its parameters are in the weight file by name, and no rule is broken."""
    component = make(tmp_path)
    prove(component, torch.float32, {"plain": 18})
    model = graphs_of(component, torch.float32, ["plain"])["plain"]
    module = random_module(component, torch.float32)
    state = {name.removeprefix("model."): tensor for name, tensor in module.state_dict().items()}
    save_file(state, tmp_path / component.weights)
    path = tmp_path / "model.onnx"
    data = serialise(model)
    assert b"/site-packages/" not in data and b".py" not in data
    path.write_bytes(link(data, tmp_path / component.weights))
    check_link(path)
    graph = onnx.load(path, load_external_data=False)
    external = {tensor.name for tensor in graph.graph.initializer if tensor.external_data}
    assert external == state.keys() and len(external) == len(graph.graph.initializer)
    checked = Graph(path, "model.onnx", graph, {})
    assert [what for name, rule in RULES.items() if name != "profiles" for what in rule(checked)] == []
    assert not graph.functions and not any("Sequence" in node.op_type for node in graph.graph.node)
