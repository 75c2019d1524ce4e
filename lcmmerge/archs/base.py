"""What an architecture is, and a checkpoint that was recognised as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import cast

from lcmmerge.archs.clip import TextEncoder, text_encoder_slots
from lcmmerge.archs.keymap import KeyMap, Shape, Slot
from lcmmerge.archs.unet import UNet, unet_slots
from lcmmerge.archs.vae import vae_slots
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.registry import entries
from lcmmerge.tensors import TensorInfo, TensorSource


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of checkpoints with the same names.

    ``name`` is the registered one (the module's). ``hub`` is the repository whose configs, tokenizers and
    scheduler are its reference, ``modelspec`` its id in the metadata of https://github.com/Stability-AI/ModelSpec.
    ``from_image``: it draws from an image, and not from a text alone.
    """

    title: str
    hub: str
    modelspec: str
    unet: UNet
    text_encoders: tuple[TextEncoder, ...]
    from_image: bool = False
    name: str = ""

    @property
    def components(self) -> tuple[str, ...]:
        return ("unet", "vae", *(encoder.name for encoder in self.text_encoders))

    def keymap(self, layout: str) -> KeyMap:
        """The names in the layout ``single-file`` (LDM's) or ``diffusers`` (as canonical)."""
        return _keymap(self, layout)


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every architecture by its registered name."""
    found = cast("Mapping[str, Architecture]", entries("lcmmerge.archs", "ARCHITECTURE"))
    return MappingProxyType({name: replace(arch, name=name) for name, arch in found.items()})


@cache
def _keymap(arch: Architecture, layout: str) -> KeyMap:
    if layout == DIFFUSERS:
        return KeyMap.of(Slot(slot.parameter, slot.parameter) for slot in _slots(arch))
    return KeyMap.of(_slots(arch))


def _slots(arch: Architecture) -> Iterator[Slot]:
    yield from unet_slots(arch.unet)
    yield from vae_slots()
    for encoder in arch.text_encoders:
        yield from text_encoder_slots(encoder)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A canonical parameter of a checkpoint: the view, the stored tensor, and the shape through the view."""

    slot: Slot
    info: TensorInfo
    shape: Shape

    @property
    def name(self) -> str:
        return self.slot.parameter


@dataclass(frozen=True, slots=True)
class Model:
    """A recognised checkpoint; ``parameters`` by canonical, ``leftovers`` by stored name, in reading order.

    ``layout``: ``single-file``, ``diffusers``, or ``component`` for a lone U-Net. ``purpose``: ``base``, or
    what the number of input channels says: ``inpainting``, ``instruct-pix2pix``, ``depth``. Leftovers are
    tensors of no canonical name: EMA copies, schedules, ``position_ids``, layers that diffusers leaves out.
    """

    source: TensorSource
    arch: Architecture
    layout: str
    purpose: str
    parameters: Mapping[str, Parameter]
    leftovers: Mapping[str, TensorInfo]

    @property
    def components(self) -> tuple[str, ...]:
        """The architecture's components that this checkpoint holds."""
        present = {name.partition(".")[0] for name in self.parameters}
        return tuple(name for name in self.arch.components if name in present)

    @property
    def missing(self) -> tuple[str, ...]:
        """Canonical names that the components lack, shortcuts aside: only the widths tell where those are."""
        components = self.components
        return tuple(
            name
            for name in self.arch.keymap(DIFFUSERS).slots
            if name not in self.parameters and name.partition(".")[0] in components and is_required(name)
        )


def is_required(parameter: str) -> bool:
    return ".conv_shortcut." not in parameter


def is_ema(stored: str) -> bool:
    """Whether a stored name is an EMA copy: ``model_ema.`` and the trained name without its dots."""
    return stored.startswith("model_ema.")
