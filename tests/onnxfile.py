"""Small parts of every kind, their graphs over their weights, and what torch says of the same inputs.

Two levels, a layer each: every operator of the big ones, and a trace of seconds. The VAE is the picos' own, whose
graphs other tests have, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKL
from pico import HIDDEN, PROJECTION, TORCH, pico, short_unet
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lcmmerge.draw.load import canonical
from lcmmerge.graphs.cache import cached
from lcmmerge.graphs.components import PipelinePart, components_of
from lcmmerge.graphs.link import link

FILES = {"plain": "model.onnx", "fused": "model.fused.onnx", "grouped": "model.grouped.onnx"}
GUIDED = {"time_cond_proj_dim": 16}  # as a full LCM


def make(part: str) -> nn.Module:
    """A part in float32 with weights; the U-Nets are named as their pico, ``ssd1b-lcm`` is a full LCM's."""
    if source_of(part) == "unet":
        name, _, guided = part.partition("-")
        return short_unet(name, **(GUIDED if guided else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _make(part)
        for parameter in module.eval().requires_grad_(False).parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return module


def _make(part: str) -> nn.Module:
    if part == "vae":
        return AutoencoderKL.from_config(pico("sd1").pipeline.vae.config)
    config = CLIPTextConfig(
        vocab_size=99, hidden_size=HIDDEN["clip_g"], intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=PROJECTION, eos_token_id=98,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel)(config)


def source_of(part: str) -> str:
    return part if part.startswith(("text_encoder", "vae")) else "unet"


def configs(part: str, module: nn.Module, folder: Path) -> Path:
    """A diffusers folder of this part alone, without weights."""
    source = source_of(part)
    if isinstance(module, CLIPTextModel | CLIPTextModelWithProjection):
        module.config.save_pretrained(folder / source)
    else:
        module.save_config(folder / source)
    index = {"_class_name": "DiffusionPipeline", source: ["a library", type(module).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


@dataclass(frozen=True, slots=True)
class Graph:
    """``path`` is linked to ``weights`` beside it; ``module`` has them, rounded to ``dtype``, in float32."""

    path: Path
    component: PipelinePart
    module: nn.Module
    dtype: str

    @property
    def weights(self) -> Path:
        return self.path.parent / self.component.weights

    def inputs(self, batch: int, height: int, width: int) -> dict[str, Tensor]:
        """Seeded values; the size is in latents."""
        sizes = {"batch": batch, "sequence": 77, "latent_height": height, "latent_width": width}
        sizes |= {"height": 8 * height, "width": 8 * width}
        generator = torch.Generator().manual_seed(height * width)
        values: dict[str, Tensor] = {}
        for port in self.component.inputs:
            shape = [sizes.get(dim, dim) for dim in port.dims]
            values[port.name] = torch.randn(shape, generator=generator).to(TORCH[self.dtype])
            if port.name == "timestep":
                values[port.name] = torch.tensor(501)
            elif port.name == "input_ids":
                values[port.name] = torch.randint(98, shape, generator=generator)
                values[port.name][:, 9] = 98
            elif port.name == "time_ids":
                values[port.name] = torch.tensor([[1024, 768, 0, 8, 512, 1024]] * batch).to(TORCH[self.dtype])
        return values

    def by_ort(self, inputs: dict[str, Tensor]) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        return session.run(None, {name: value.numpy() for name, value in inputs.items()})

    def by_torch(self, inputs: dict[str, Tensor]) -> list[np.ndarray]:
        values = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
        with torch.no_grad():
            return [tensor.numpy() for tensor in _outputs(self.component.name, self.module, values)]

    def errors(self, batch: int, height: int, width: int) -> list[float]:
        """The largest difference of each output, relative to its largest value."""
        inputs = self.inputs(batch, height, width)
        pairs = zip(self.by_ort(inputs), self.by_torch(inputs), strict=True)
        return [float(np.abs(got.astype(np.float32) - want).max() / np.abs(want).max()) for got, want in pairs]


def _outputs(name: str, module: Any, values: dict[str, Tensor]) -> Iterator[Tensor]:
    """As diffusers' pipelines call the parts."""
    if name == "vae_decoder":
        yield module.decode(values["latent_sample"]).sample
    elif name == "vae_encoder":
        yield module.encode(values["sample"]).latent_dist.parameters
    elif name == "unet":
        added = {key: values[key] for key in ("text_embeds", "time_ids") if key in values}
        guidance = values.get("timestep_cond")
        inputs = (values[key] for key in ("sample", "timestep", "encoder_hidden_states"))
        yield module(*inputs, timestep_cond=guidance, added_cond_kwargs=added).sample
    else:
        output = module(values["input_ids"], output_hidden_states=True)
        projected = "text_embeds" in output
        yield output.text_embeds if projected else output.last_hidden_state
        yield output.last_hidden_state if projected else output.pooler_output
        yield from output.hidden_states


def export(part: str, name: str, dtype: str, folder: Path, cache: Path) -> dict[str, Graph]:
    """The component ``name`` of a part, its variants and its weights in ``folder``."""
    module = make(part)
    for parameter in module.parameters():
        parameter.copy_(parameter.to(TORCH[dtype]))
    found = components_of(configs(part, module, folder / "configs"))
    (component,) = (component for component in found if component.name == name)
    names = component.parameters()
    state = {canonical("", key)[1:]: value for key, value in module.state_dict().items()}
    tensors = {key: value.to(TORCH[dtype]) for key, value in state.items() if key in names}
    save_file(tensors, folder / component.weights, metadata={"format": "pt"})
    graphs = {}
    for variant in FILES if component.fused else ("plain",):
        path = folder / FILES[variant]
        path.write_bytes(link(cached(component, TORCH[dtype], variant, cache), folder / component.weights))
        graphs[variant] = Graph(path, component, module, dtype)
    return graphs
