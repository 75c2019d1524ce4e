"""Which architecture a checkpoint is of: from its names and its tensors' numbers of dimensions alone.

Widths are never looked at, so that a model of any size is recognised by its structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from types import MappingProxyType

from lcmmerge.archs.base import Architecture, Model, Parameter, architectures, is_required
from lcmmerge.archs.foreign import explain_unknown, refuse_foreign
from lcmmerge.archs.keymap import KeyMap, Slot
from lcmmerge.archs.unet import LDM
from lcmmerge.errors import FormatError
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import TensorInfo, TensorSource


@dataclass(frozen=True, slots=True)
class Naming:
    """How a file spells its names: ``sentinel`` is one of them, with ``prefix`` they are the ``keymap``'s."""

    sentinel: str
    keymap: str
    prefix: str = ""


NAMINGS = (
    Naming("unet.conv_in.weight", DIFFUSERS),
    Naming("conv_in.weight", DIFFUSERS, "unet."),
    Naming(f"{LDM}input_blocks.0.0.weight", SINGLE_FILE),
    Naming("diffusion_model.input_blocks.0.0.weight", SINGLE_FILE, "model."),
    Naming("input_blocks.0.0.weight", SINGLE_FILE, LDM),
)
PURPOSES = {4: "base", 5: "depth", 8: "instruct-pix2pix", 9: "inpainting"}

# Some old LDM files and files of transformers 5 have no `text_model.`; old diffusers files have other names
# in the VAE's attention.
TEXT_MODEL = re.compile(r"^(text_encoder(?:_2)?|.+\.transformer)\.(embeddings|encoder|final_layer_norm)\.")
VAE_ATTENTION = re.compile(r"^(vae\..+\.attentions\.\d+)\.(query|key|value|proj_attn)\.")
VAE_MODERN = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def identify(source: TensorSource) -> Model:
    """The checkpoint's architecture, and where each canonical parameter lies; only the U-Net must be there.

    Raises UnknownArchitectureError with what the file seems to be, and FormatError.
    """
    refuse_foreign(source)
    naming = next((naming for naming in NAMINGS if naming.sentinel in source.tensors), None)
    if naming is None:
        raise explain_unknown(source)
    spelled = {_spell(info.name, naming): info for info in source}
    if len(spelled) < len(source.tensors):
        raise FormatError(f"{source.path}: some parameters are there in two spellings", "keep one of them")
    linear = any(name.endswith(".proj_in.weight") and len(info.shape) == 2 for name, info in spelled.items())
    arch = _match(source, spelled.keys(), naming.keymap, linear)
    parameters, leftovers = _read(spelled, arch.keymap(naming.keymap))
    model = Model(source, arch, source.layout, _purpose(parameters), parameters, leftovers)
    if source.layout != DIFFUSERS and model.components == ("unet",):
        return replace(model, layout="component")
    return model


def _spell(name: str, naming: Naming) -> str:
    """A stored name as the key map spells it."""
    name = TEXT_MODEL.sub(r"\1.text_model.\2.", naming.prefix + name)
    return VAE_ATTENTION.sub(lambda match: f"{match[1]}.{VAE_MODERN[match[2]]}.", name)


def _match(source: TensorSource, names: Set[str], keymap: str, linear: bool) -> Architecture:
    """The architecture whose whole U-Net is there; of several, the largest (SSD-1B is a part of SDXL)."""
    missing = {
        arch: [slot.stored for slot in _unet_slots(arch, keymap) if slot.stored not in names]
        for arch in architectures().values()
        if arch.unet.linear_projection == linear
    }
    complete = [arch for arch, lacking in missing.items() if not lacking]
    if complete:
        return max(complete, key=lambda arch: len(_unet_slots(arch, keymap)))
    raise explain_unknown(source, *min(missing.items(), key=lambda item: len(item[1])))


def _unet_slots(arch: Architecture, keymap: str) -> list[Slot]:
    slots = arch.keymap(keymap).slots.values()
    return [slot for slot in slots if slot.parameter.startswith("unet.") and is_required(slot.parameter)]


def _read(
    spelled: Mapping[str, TensorInfo], keymap: KeyMap
) -> tuple[Mapping[str, Parameter], Mapping[str, TensorInfo]]:
    parameters: dict[str, Parameter] = {}
    leftovers: dict[str, TensorInfo] = {}
    for name, info in spelled.items():
        slots = keymap.read(name)
        if not slots:
            leftovers[info.name] = info
        for slot in slots:
            parameters[slot.parameter] = _parameter(slot, info)
    return MappingProxyType(parameters), MappingProxyType(leftovers)


def _parameter(slot: Slot, info: TensorInfo) -> Parameter:
    """The slot as this file has it: its own spelling, and linears where it has no 1×1 convolutions."""
    conv1x1 = slot.conv1x1 and info.shape[2:] == (1, 1)
    slot = replace(slot, stored=info.name, conv1x1=conv1x1)
    if slot.parts > 1 and (not info.shape or info.shape[0] % slot.parts):
        what = f"{info.path}: {info.name!r} of shape {list(info.shape)} is not {slot.parts} equal parts"
        raise FormatError(what, "the file is damaged: download or make it again")
    return Parameter(slot, info, slot.shape(info.shape))


def _purpose(parameters: Mapping[str, Parameter]) -> str:
    shape = parameters["unet.conv_in.weight"].shape
    channels = shape[1] if len(shape) == 4 else 0
    return PURPOSES.get(channels, f"{channels} input channels")
