"""The whole way from a prompt's token ids to an image as one graph, its few steps unrolled, its scheduler folded in.

No sampler is left to write: what a program in any language needs is a tokenizer, a source of noise and this graph. It
is made of the components' graphs, and points into their weight files: a step costs nodes and no weights, and
`lcmmerge relambda` reaches it too. What the steps have in common (the text's keys and values, a weight's transposition)
is computed once.

    input_ids, [input_ids_2]  int64 [batch, tokens]
    noise                     float32 [1 + draws, batch, channels, height / 8, width / 8], normal: what the loop begins
                              with, then what the scheduler adds (LCM: between its steps)
    images                    uint8 [batch, height, width, 3]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from lcmmerge.archs import Model
from lcmmerge.draw.presets import Preset, own_scheduler
from lcmmerge.draw.sampling import guidance_embedding
from lcmmerge.errors import IncompatibleError
from lcmmerge.export.pipeline import VAE_DEFAULTS
from lcmmerge.graphs.compose import Composition, LinkedGraph
from lcmmerge.graphs.link import check_link
from lcmmerge.graphs.rules import TO_THE_END
from lcmmerge.graphs.schedule import SchedulerStep, steps_of
from lcmmerge.graphs.serial import serialise
from lcmmerge.refs.weights import local_tree, read_json

FLOAT, INT64, UINT8 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8
FILES = {"plain": "pipeline.onnx", "fused": "pipeline.fused.onnx"}


@dataclass(frozen=True, slots=True)
class Loop:
    """The sampling loop of a whole-pipeline graph, unrolled.

    ``guidance``: what a full LCM is told. ``unet`` and ``vae``: their configs.
    """

    steps: tuple[SchedulerStep, ...]
    guidance: float
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]

    @property
    def draws(self) -> int:
        """How often noise is asked for."""
        return 1 + sum(step.noise != 0 for step in self.steps)


def plan_loop(configs: Path, preset: Preset, model: Model | None = None) -> Loop:
    """``model`` and ``configs`` as of ``own_scheduler``.

    Raises IncompatibleError (guidance, a scheduler of many steps), LcmMergeError (more steps than it takes)."""
    tree = local_tree(configs)
    unet = {"time_cond_proj_dim": None} | read_json(tree, "unet/config.json")
    if preset.guidance > 1 and unet["time_cond_proj_dim"] is None:
        raise IncompatibleError(
            f"{preset}: a whole pipeline asks the U-Net once a step, which is without guidance",
            "merge an acceleration LoRA, or say which it holds by --accelerator",
        )
    scheduler = preset.build(own_scheduler(configs, model).config)
    vae = dict(VAE_DEFAULTS) | read_json(tree, "vae/config.json")
    return Loop(steps_of(scheduler, preset), max(preset.guidance, 1.0), unet, vae)


def write_whole(folder: Path, graphs: Mapping[str, Mapping[str, str]], loop: Loop) -> dict[str, Any]:
    """``graphs``: component → variant → path. What the manifest says of it; variants are the U-Net's."""
    said: dict[str, Any] = {"timesteps": [step.timestep for step in loop.steps], "graphs": {}}
    for variant in graphs["unet"]:
        linked = {name: LinkedGraph(folder / by.get(variant, by["plain"])) for name, by in graphs.items()}
        model = whole_graph(linked, loop)
        path = folder / FILES[variant]
        path.write_bytes(serialise(model))
        check_link(path)
        said["graphs"][variant] = {"path": path.name, "opset": model.graph.opset_imports[""]}
        said |= {"inputs": _ports(model.graph.inputs), "outputs": _ports(model.graph.outputs)}
    return said


def whole_graph(parts: Mapping[str, LinkedGraph], loop: Loop) -> ir.Model:
    """``parts``: of text encoders, ``unet`` and ``vae_decoder``."""
    making = Composition(parts.values())
    encoders = sorted(name for name in parts if name.startswith("text_encoder"))
    length = _ports(parts[encoders[0]].model.graph.inputs)["input_ids"][1]
    ids = [_input(name.replace("text_encoder", "input_ids"), INT64, ["batch", length]) for name in encoders]
    dims = [loop.draws, "batch", loop.unet["in_channels"], "latent_height", "latent_width"]
    noise = _input("noise", FLOAT, dims)
    text = [making.call(parts[name], {"input_ids": given}, name) for name, given in zip(encoders, ids, strict=True)]
    latents = _loop(making, parts["unet"], _conditions(making, parts["unet"], text, noise, loop), noise, loop)
    images = _decode(making, parts["vae_decoder"], latents, loop.vae)
    images.name, images.shape = "images", ir.Shape(["batch", "height", "width", 3])
    model = making.model([*ids, noise], [images], "pipeline")
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    return model


def _conditions(
    making: Composition, unet: LinkedGraph, text: list[dict[str, ir.Value]], noise: ir.Value, loop: Loop
) -> dict[str, ir.Value]:
    """What the U-Net is told at each step beside the latents and the timestep."""
    batch = making.add("Shape", noise, dtype=INT64, start=1, end=2)
    given = {"encoder_hidden_states": text[0]["last_hidden_state"]}
    if "text_embeds" in unet.inputs:
        hidden = [found[f"hidden_states.{_layers(found) - 1}"] for found in text]
        given["encoder_hidden_states"] = hidden[0] if len(hidden) == 1 else making.add("Concat", *hidden, axis=-1)
        given["text_embeds"] = text[-1]["text_embeds"]
        given["time_ids"] = _time_ids(making, noise, batch, loop.vae)
    if "timestep_cond" in unet.inputs:
        width = loop.unet["time_cond_proj_dim"]
        embedding = guidance_embedding(torch.tensor([loop.guidance - 1]), width).numpy()
        given["timestep_cond"] = _for_each(making, making.constant(embedding), batch)
    return given


def _time_ids(making: Composition, noise: ir.Value, batch: ir.Value, vae: Mapping[str, Any]) -> ir.Value:
    """[batch, 6]: original height and width, no crop, and the same as the target."""
    pixels = 2 ** (len(vae["block_out_channels"]) - 1)
    size = [_side(making, noise, axis, pixels) for axis in (3, 4)]
    row = making.add("Concat", *size, making.constant(np.zeros(2, np.float32)), *size, axis=0)
    return _for_each(making, making.add("Unsqueeze", row, making.constant(np.array([0]))), batch)


def _side(making: Composition, noise: ir.Value, axis: int, pixels: int) -> ir.Value:
    """float32 [1]: the last of 8, 16, … pixels. A GPU counts these by itself; a shape would be copied to it."""
    end = making.add("Mul", making.add("Shape", noise, dtype=INT64, start=axis, end=axis + 1), _whole(making, [pixels]))
    end = making.add("Reshape", making.add("Add", end, _whole(making, [1])), _whole(making, []))
    sides = making.add("Range", _whole(making, pixels), end, _whole(making, pixels))
    last = making.add("Slice", sides, *(_whole(making, [item]) for item in (-1, TO_THE_END[0], 0, 1)))
    return making.cast(last, FLOAT)


def _whole(making: Composition, items: int | list[int]) -> ir.Value:
    return making.constant(np.array(items, np.int64))


def _for_each(making: Composition, row: ir.Value, batch: ir.Value) -> ir.Value:
    """[1, n] → [batch, n]."""
    return making.add("Expand", row, making.add("Concat", batch, making.constant(np.array([1])), axis=0))


def _loop(
    making: Composition, unet: LinkedGraph, given: Mapping[str, ir.Value], noise: ir.Value, loop: Loop
) -> ir.Value:
    """Latents stay in float32 between the steps, whatever the U-Net's type."""
    latents, drawn = making.add("Gather", noise, making.constant(np.array(0)), axis=0), 1
    for number, step in enumerate(loop.steps):
        inputs = {
            **given,
            "sample": _scaled(making, latents, step.scale),
            "timestep": making.constant(np.array(step.timestep)),
        }
        prediction = making.cast(making.call(unet, inputs, f"step{number}")["out_sample"], FLOAT)
        terms = [(latents, step.latents), (prediction, step.prediction)]
        if step.noise:
            terms.append((making.add("Gather", noise, making.constant(np.array(drawn)), axis=0), step.noise))
            drawn += 1
        first, *rest = [_scaled(making, value, factor) for value, factor in terms if factor]
        for term in rest:
            first = making.add("Add", first, term)
        latents = first
    return latents


def _decode(making: Composition, decoder: LinkedGraph, latents: ir.Value, vae: Mapping[str, Any]) -> ir.Value:
    """uint8 [batch, height, width, 3], rounded to even as numpy does; uint8 is the last cast, as TensorRT wants."""
    latents = making.add("Div", latents, making.constant(np.array(vae["scaling_factor"], np.float32)))
    if vae["latents_mean"] and vae["latents_std"]:
        std, mean = (
            making.constant(np.array(vae[key], np.float32).reshape(1, -1, 1, 1))
            for key in ("latents_std", "latents_mean")
        )
        latents = making.add("Add", making.add("Mul", latents, std), mean)
    sample = making.call(decoder, {"latent_sample": latents}, "vae_decoder")["sample"]
    sample = making.add("Transpose", making.cast(sample, FLOAT), perm=[0, 2, 3, 1])
    half, zero, one, levels = (making.constant(np.array(value, np.float32)) for value in (0.5, 0, 1, 255))
    pixels = making.add("Clip", making.add("Add", making.add("Mul", sample, half), half), zero, one)
    return making.cast(making.add("Round", making.add("Mul", pixels, levels)), UINT8)


def _scaled(making: Composition, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1 else making.add("Mul", value, making.constant(np.array(factor, np.float32)))


def _input(name: str, dtype: ir.DataType, dims: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def _layers(outputs: Mapping[str, ir.Value]) -> int:
    return sum(name.startswith("hidden_states.") for name in outputs) - 1


def _ports(values: Any) -> dict[str, list[Any]]:
    return {value.name: [dim if isinstance(dim, int) else dim.value for dim in value.shape] for value in values}
