"""Graphs with the names that NVIDIA's diffusion demo has for them, for their inputs and for their outputs.

https://github.com/NVIDIA/TensorRT/tree/main/demo/Diffusion: demo_diffusion/model/{clip,unet,vae}.py. It has a folder
for each graph, while a graph's data lie in its own folder, where runtimes refuse links. So the renamed graphs, of a
megabyte each, are written beside the weights; ``tensorrt/README.md`` has the commands that copy both to where it looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import IncompatibleError, OptionError
from lcmmerge.graphs.components import PipelinePart

if TYPE_CHECKING:
    import onnx_ir as ir

NVIDIA = "nvidia"
FILE = "model.nvidia.onnx"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A component under the names of NVIDIA's demo.

    ``name``: the demo's; ``inputs`` and ``outputs``: ours → the demo's. Other outputs it has no use for.
    """

    name: str
    component: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def path(self) -> str:
        return f"{self.component}/{FILE}"


def check_names(target: str, components: Iterable[PipelinePart]) -> None:
    """Raises OptionError, IncompatibleError (a full LCM, whose guidance embedding the demo does not give)."""
    if target != "tensorrt":
        raise OptionError("names of NVIDIA's demo are for TensorRT", "export --to tensorrt, or omit --names")
    if any(port.name == "timestep_cond" for component in components for port in component.inputs):
        raise IncompatibleError("NVIDIA's demo draws with no full LCM", "omit --names, or merge an LCM-LoRA")


def renamed(components: Iterable[PipelinePart]) -> Iterator[Renamed]:
    """The demo has a VAE encoder of another kind, which draws from its distribution."""
    components = tuple(components)
    xl = any(component.name == "text_encoder_2" for component in components)
    for component in components:
        match component.name:
            case "text_encoder":
                outputs = {"last_hidden_state": "text_embeddings"} | (_hidden(component) if xl else {})
                yield Renamed("clip", component.name, {}, outputs)
            case "text_encoder_2":
                yield Renamed("clip2", component.name, {}, {"text_embeds": "text_embeddings"} | _hidden(component))
            case "unet":
                yield Renamed("unetxl" if xl else "unet", component.name, {}, {"out_sample": "latent"})
            case "vae_decoder":
                yield Renamed("vae", component.name, {"latent_sample": "latent"}, {"sample": "images"})


def _hidden(component: PipelinePart) -> dict[str, str]:
    """The last hidden states but one."""
    *_, before, _ = (port.name for port in component.outputs if port.name.startswith("hidden_states."))
    return {before: "hidden_states"}


def write_renamed(folder: Path, components: Iterable[PipelinePart], graphs: Mapping[str, str]) -> dict[str, Any]:
    """From each component's linked graph below ``folder``; what the manifest says of them, by the demo's names."""
    said = {}
    for item in renamed(components):
        (folder / item.path).write_bytes(rename((folder / graphs[item.component]).read_bytes(), item))
        said[item.name] = {
            "path": item.path,
            "component": item.component,
            "inputs": dict(item.inputs),
            "outputs": dict(item.outputs),
        }
    return said


def rename(graph: bytes, item: Renamed) -> bytes:
    import onnx_ir as ir
    from onnx import ModelProto
    from onnx_ir.passes import common

    from lcmmerge.graphs.serial import serialise

    model = ir.from_proto(ModelProto.FromString(graph))
    kept = [value for value in model.graph.outputs if value.name in item.outputs]
    model.graph.outputs[:] = kept
    _rename(model.graph.inputs, item.inputs)
    _rename(kept, item.outputs)
    common.RemoveUnusedNodesPass()(model)
    return serialise(model)


def _rename(values: Iterable[ir.Value], names: Mapping[str, str]) -> None:
    for value in values:
        assert value.name is not None
        value.name = names.get(value.name, value.name)
