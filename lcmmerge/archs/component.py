"""What a component is: a part of a model with weights of its own, such as a U-Net, a text encoder or a VAE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lcmmerge.archs.tables import Slot
from lcmmerge.archs.views import Shape
from lcmmerge.errors import OptionError

BASE = "BASE"  # the block of everything outside the denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a model, by the name of its folder in diffusers' layout, whose tensors keep their names.

    ``stored``: what stands before its names in a single file. ``module``: the class of diffusers or transformers that
    computes it. ``kohya``: how kohya-ss/sd-scripts begins its modules' names in adapter files, empty where it has none;
    ``kohya_stored``: a single file's names follow, and not the canonical ones. ``kind``: what messages call it.
    ``expert``: what file names call it where the model has several denoisers of one structure (``high_noise``).
    ``sentinel``: a parameter that tells it from others, where it is what a checkpoint is recognised by. ``inputs``:
    the parameter that has more input channels in models that are given more than latents. ``comfy``: what ComfyUI calls
    it, a text encoder. ``optional``: only some models of the family have it. ``by_head``: how stored names end whose
    parts alternate head by head in some files, and the name of the parameter beside them that is as long as a head.
    """

    name: str
    stored: str = ""
    module: str = ""
    kohya: str = ""
    kohya_stored: bool = False
    kind: str = "component"
    expert: str = ""
    sentinel: str = ""
    inputs: str = ""
    comfy: str = ""
    optional: bool = False
    by_head: tuple[str, str] = ("", "")

    def slots(self) -> Iterator[Slot]:
        """Every name that it may have in a single file; none where its tensors keep whatever names they have."""
        yield from ()

    def sized(self, names: Iterable[str]) -> Self:
        """The component with as many layers as these canonical names, without its own in front, tell."""
        return self

    def respell(self, name: str) -> str:
        """A name as older or newer programs spell it → as the key map does; the component, or ``stored``, in front."""
        return name

    def head_of(self, slot: Slot) -> str:
        """The parameter as long as a head, where the slot's tensor may alternate head by head; else empty."""
        end, norm = self.by_head
        return f"{slot.parameter.rsplit('.', 2)[0]}.{norm}" if end and slot.stored.endswith(end) else ""

    def begins(self) -> tuple[str, ...]:
        """What may stand before its modules' names in adapter files."""
        comfy = f"text_encoders.{self.comfy}.transformer.", f"text_encoders.{self.comfy}.", f"{self.comfy}."
        number = self.name.removeprefix("text_encoder").strip("_") or "1"  # some count where there is only one
        counted = (f"lora_te{number}_",) if self.name.startswith("text_encoder") else ()
        return (f"{self.name}.", self.stored, self.kohya, *counted, *(comfy if self.comfy else ()))

    def aliases(self) -> Iterator[Slot]:
        """What adapter files alone call its modules, as if a single file did, without what stands before its names."""
        yield from ()

    def marks(self) -> tuple[str, ...]:
        """How most of its modules' names begin, with ``_`` for dots."""
        return ()

    def may_have(self, module: str, shape: Shape) -> bool:
        """Whether an adapter for this canonical module, made for this shape, may be its own."""
        return True

    def spellings(self, name: str) -> tuple[str, ...]:
        """A canonical module's name, without the component, and what adapter files call it instead."""
        return (name,)

    def numbered(self) -> tuple[str, ...]:
        """The modules that lora_diffusion trains, in the order by which it calls them; none where it knows none."""
        return ()

    def accepts(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether it may be of these shapes, by canonical or stored names that are all there."""
        return True

    def purpose(self, shapes: Mapping[str, Shape]) -> str:
        """``base``, or what else its shapes, by canonical name, say that it is for."""
        return "base"

    def config(self, shapes: Mapping[str, Shape]) -> Mapping[str, Any]:
        """What of its config.json its tensors tell, by canonical name."""
        return {}

    def is_described(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json of transformers may be its own."""
        return True

    def blocks(self) -> tuple[str, ...]:
        """The blocks that may have factors on λ, in order; of a denoiser alone."""
        return ()

    def block_of(self, slot: Slot) -> str:
        """The block of one of its parameters."""
        raise OptionError(f"{self.name}: has no blocks", "omit --block-weights")
