"""What an architecture is, and a checkpoint that was recognised as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import MappingProxyType
from typing import NamedTuple, cast

from lcmmerge.archs.component import Component
from lcmmerge.archs.prediction import EPSILON, Prediction
from lcmmerge.archs.tables import KeyMap, Slot
from lcmmerge.archs.views import Shape
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.registry import entries
from lcmmerge.tensors import TensorInfo, TensorSource


@dataclass(frozen=True, slots=True)
class Family:
    """What is the same for every model of a family, beside its names.

    ``prediction``: what the denoiser predicts where nothing says otherwise: ``epsilon``, ``v_prediction``, ``flow``.
    ``mixed``: models of it that predict the one and the other look alike, so that this is a guess.
    ``pipeline``: diffusers' class that draws an image of a text, empty where lcmmerge draws none. ``guidance``: of
    many-step samplers, that class's default. ``trained_guidance``: the range of w that distillation draws from, as in
    LCM's own scripts. ``micro_conditioning``: it is told sizes and pooled text beside the prompt
    (https://arxiv.org/abs/2307.01952). ``upcast_vae``: its VAE overflows in float16, unless its config says
    ``force_upcast`` false. ``from_image``: it draws from an image, and not from a text alone. ``duty``: what the
    licence of its models asks of what is made of them; ``duty_with``: a parameter that only those under it have.
    """

    prediction: str = EPSILON
    mixed: bool = False
    pipeline: str = ""
    guidance: float = 7.5
    trained_guidance: tuple[float, float] = (5.0, 15.0)
    micro_conditioning: bool = False
    upcast_vae: bool = False
    from_image: bool = False
    duty: str = ""
    duty_with: str = ""


class Variant(NamedTuple):
    """What other programs call some models of an architecture.

    ``kind``: those that predict so (``epsilon``), or are for such a purpose (``inpainting``). ``modelspec``: their id
    in the metadata of https://github.com/Stability-AI/ModelSpec. ``version``: the ss_base_model_version of
    kohya-ss/sd-scripts or musubi-tuner, by which web UIs sort LoRAs, empty where these have none. ``size``: what they
    were trained at, in pixels.
    """

    kind: str
    modelspec: str
    version: str
    size: int


@dataclass(frozen=True)
class Architecture:
    """A family of checkpoints with the same names.

    ``parts``: its components, the denoiser first; of several denoisers (``Component.expert``) a file may hold one or
    all. ``name`` is the registered one (the module's). ``hub`` is the repository whose configs, tokenizers and
    scheduler are its reference. ``modelspec``, ``version`` and ``size`` are as in Variant; ``variants`` are the models
    for which they are others. ``implementation``: whose names single files have. ``gguf``: the general.architecture by
    which ComfyUI-GGUF and stable-diffusion.cpp know a GGUF file of it, empty where they know none.
    """

    title: str
    hub: str
    modelspec: str
    parts: tuple[Component, ...]
    family: Family = Family()
    name: str = ""
    version: str = ""
    size: int = 512
    implementation: str = "https://github.com/Stability-AI/generative-models"
    variants: tuple[Variant, ...] = ()
    gguf: str = ""

    @property
    def denoiser(self) -> Component:
        return self.parts[0]

    @property
    def experts(self) -> tuple[Component, ...]:
        """The denoisers, where there are several of one structure, each for its share of the noise levels."""
        return tuple(part for part in self.parts if part.expert)

    @property
    def first_layers(self) -> tuple[str, ...]:
        """The parameters that have more input channels in models that are given more than latents."""
        return tuple(f"{part.name}.{part.inputs}" for part in (self.denoiser, *self.experts) if part.inputs)

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def text_encoders(self) -> tuple[Component, ...]:
        return tuple(part for part in self.parts if part.name.startswith("text_encoder"))

    def keymap(self, layout: str) -> KeyMap:
        """The names in the layout ``single-file`` (such as LDM's) or ``diffusers`` (as canonical)."""
        return self._canonical if layout == DIFFUSERS else self._stored

    @cached_property
    def _stored(self) -> KeyMap:
        return KeyMap.of(slot for part in self.parts for slot in part.slots())

    @cached_property
    def _canonical(self) -> KeyMap:
        slots = self._stored.slots.values()
        return KeyMap.of(Slot(slot.parameter, slot.parameter, optional=slot.optional) for slot in slots)

    @cached_property
    def required(self) -> frozenset[str]:
        """The parameters that every model of it has, as far as its components are there."""
        return frozenset(name for name, slot in self._stored.slots.items() if not slot.optional)


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every architecture by its registered name."""
    found = cast("Mapping[str, Architecture]", entries("lcmmerge.archs", "ARCHITECTURE"))
    return MappingProxyType({name: replace(arch, name=name) for name, arch in found.items()})


@dataclass(frozen=True, slots=True)
class Parameter:
    """A canonical parameter of a checkpoint: the view, the stored tensor, and the shape through the view.

    ``untold``: nothing says which of its tensor's rows are its own (``archs.rows``), so that it cannot be read.
    """

    slot: Slot
    info: TensorInfo
    shape: Shape
    untold: bool = False

    @property
    def name(self) -> str:
        return self.slot.parameter


@dataclass(frozen=True, slots=True)
class Model:
    """A recognised checkpoint; ``parameters`` by canonical, ``leftovers`` by stored name, in reading order.

    ``layout``: ``single-file``, ``diffusers``, or ``component`` for a denoiser alone, with what lies among its names.
    ``purpose``: ``base``, or what the number of input channels says: ``inpainting``, ``instruct-pix2pix``, ``depth``.
    ``prediction``: of its denoiser. Leftovers are tensors of no canonical name: EMA copies, schedules,
    ``position_ids``, layers that diffusers leaves out.
    """

    source: TensorSource
    arch: Architecture
    layout: str
    purpose: str
    parameters: Mapping[str, Parameter]
    leftovers: Mapping[str, TensorInfo]
    prediction: Prediction

    def predicting(self, text: str | None) -> Model:
        """The model with the prediction that a person names, where one does. Raises OptionError."""
        return replace(self, prediction=Prediction.named(text)) if text else self

    @property
    def is_canonical(self) -> bool:
        """Whether its tensors are called as diffusers calls them."""
        names = ((slot.stored, slot.parameter) for slot in (each.slot for each in self.parameters.values()))
        return all(stored.endswith(parameter.partition(".")[2]) for stored, parameter in names)

    @property
    def is_interleaved(self) -> bool:
        """Whether q, k and v alternate head by head in its file."""
        return any(parameter.slot.view.head for parameter in self.parameters.values())

    @property
    def doubt(self) -> str:
        """What is assumed of it, where that may be wrong; else empty."""
        if self.arch.name not in architectures():
            return f"{self.source.path.name} is of {self.arch.title}: only what is named alike is merged"
        if self.is_interleaved:
            return (
                f"q, k and v of {self.source.path.name} alternate head by head, and do so in an output of its layout: "
                "diffusers and ComfyUI read a single file as if they did not"
            )
        if self.prediction.told_by or not self.arch.family.mixed:
            return ""
        kind = self.prediction.kind
        return (
            f"nothing in {self.source.path.name} says what it predicts: {kind} is assumed, as of most "
            f"{self.arch.title} models; --prediction says another"
        )

    @property
    def duty(self) -> str:
        """What its licence asks of what is made of it; empty where there is nothing."""
        family = self.arch.family
        return family.duty if not family.duty_with or family.duty_with in self.parameters else ""

    @property
    def experts(self) -> tuple[str, ...]:
        """The components that are experts and that this checkpoint holds."""
        components = self.components
        return tuple(part.name for part in self.arch.experts if part.name in components)

    @property
    def components(self) -> tuple[str, ...]:
        """The architecture's components that this checkpoint holds."""
        present = {name.partition(".")[0] for name in self.parameters}
        return tuple(name for name in self.arch.components if name in present)

    @property
    def lacking(self) -> tuple[str, ...]:
        """The components that every whole model of its architecture has, and this checkpoint has not."""
        present = self.components
        return tuple(part.name for part in self.arch.parts if not part.optional and part.name not in present)

    @property
    def missing(self) -> tuple[str, ...]:
        """Canonical names that the components lack, those aside of which only the widths tell where they are."""
        components = self.components
        return tuple(
            name
            for name in self.arch.keymap(DIFFUSERS).slots
            if name in self.arch.required
            and name not in self.parameters
            and name.partition(".")[0] in components
        )

    @property
    def shapes(self) -> dict[str, Shape]:
        """Canonical name → shape."""
        return {name: parameter.shape for name, parameter in self.parameters.items()}


def is_ema(stored: str) -> bool:
    """Whether a stored name is an EMA copy: ``model_ema.`` and the trained name without its dots."""
    return stored.startswith("model_ema.")
