"""Which architecture a checkpoint is of: from its names and its tensors' numbers of dimensions alone.

Widths are never looked at, so that a model of any size is recognised by its structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from lcmmerge.archs.base import Architecture, Model, Parameter, architectures
from lcmmerge.archs.component import Component
from lcmmerge.archs.foreign import explain_unknown, refuse_foreign
from lcmmerge.archs.prediction import prediction_of
from lcmmerge.archs.rows import ordered
from lcmmerge.archs.tables import Slot
from lcmmerge.archs.unknown import unknown_architecture
from lcmmerge.errors import FormatError
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import TensorInfo, TensorSource

# What stands before a denoiser's names in single files; those of other programs hold nothing else.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "model.", "")


@dataclass(frozen=True, slots=True)
class Reading:
    """A file as one architecture's ``keymap`` reads it, and the stored names that it lacks.

    ``begins``: what stands before the denoiser's names in the file, and what in the key map.
    """

    arch: Architecture
    keymap: str
    begins: tuple[str, str]
    missing: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """What the file calls the denoiser's tensors."""
        return {_begun(name, self.begins[::-1]) for name in _needed(self.arch, self.keymap)}

    def spell(self, name: str) -> str:
        """A stored name as the key map spells it."""
        name = _begun(name, self.begins)
        for part in self.arch.parts:
            name = part.respell(name)
        return name


def identify(source: TensorSource) -> Model:
    """The checkpoint's architecture, and where each canonical parameter lies; only the denoiser must be there.

    A folder whose config.json names a class of no family keeps its names (``archs.unknown``).
    Raises UnknownArchitectureError with what the file seems to be, and FormatError.
    """
    refuse_foreign(source)
    source = _unwrapped(source)
    readings = list(_readings(source))
    complete = [reading for reading in readings if not reading.missing]
    if not complete and (arch := unknown_architecture(source)):
        begin = "" if source.layout == DIFFUSERS else f"{arch.denoiser.name}."
        complete = [Reading(arch, DIFFUSERS, ("", begin), ())]
    if not complete:
        readings = readings or list(_parts(source))
        nearest = min(readings, key=lambda reading: (len(reading.missing), -_size(reading)), default=None)
        raise explain_unknown(source, nearest.arch, nearest.missing) if nearest else explain_unknown(source)
    reading = max(complete, key=_size)  # SSD-1B is a part of SDXL, Segmind-Vega of both
    arch = reading.arch
    if any(each.arch.name == arch.name and each.names != reading.names for each in complete):
        raise FormatError(f"{source.path}: the {arch.denoiser.kind} is there in two spellings", "keep one of them")
    parameters, leftovers = _read(reading, source)
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    model = Model(source, arch, source.layout, arch.denoiser.purpose(shapes), parameters, leftovers,
                  prediction_of(source, arch.family.prediction))  # fmt: skip
    held = {part.stored for part in arch.parts if part.name in model.components}
    if source.layout != DIFFUSERS and held == {arch.denoiser.stored}:
        model = replace(model, layout="component")
    return ordered(model)


def _unwrapped(source: TensorSource) -> TensorSource:
    """Without what a program put before all names: that is no part of them, and no reader would find them by it."""
    stored = {part.stored for arch in architectures().values() for part in arch.parts if part.stored}
    doubled = tuple(f"model.{begin}" for begin in stored)
    wrappers: dict[str, str | tuple[str, ...]] = {begin: begin for begin in ("state_dict.", "module.", "_orig_mod.")}
    for wrapper, begins in (wrappers | {"model.": doubled}).items():
        names = source.tensors.keys()
        if names and all(name.startswith(begins) for name in names):
            tensors = {name.removeprefix(wrapper): info for name, info in source.tensors.items()}
            tensors = {name: replace(info, name=name) for name, info in tensors.items()}
            source = replace(source, tensors=MappingProxyType(tensors))
    return source


def _readings(source: TensorSource) -> Iterator[Reading]:
    """The file as each architecture that might be its would read it."""
    for arch in architectures().values():
        denoisers = arch.experts or (arch.denoiser,)
        for keymap, begins in _namings(arch, source):
            shapes = {_begun(info.name, begins): info.shape for info in source}
            if not arch.denoiser.accepts(shapes):
                continue
            parts = tuple(
                part.sized(_inner(arch.denoiser if part in denoisers else part, keymap, shapes)) for part in arch.parts
            )
            # One of the published depth keeps its key maps, which are made once.
            sized = arch if parts == arch.parts else replace(arch, parts=parts)
            yield Reading(sized, keymap, begins, tuple(name for name in _needed(sized, keymap) if name not in shapes))


def _inner(part: Component, keymap: str, names: Iterable[str]) -> list[str]:
    """A component's names, without what stands before them."""
    begin = part.stored if keymap == SINGLE_FILE else f"{part.name}."
    return [name.removeprefix(begin) for name in names if name.startswith(begin)]


def _parts(source: TensorSource) -> Iterator[Reading]:
    """The file as each denoiser would read it whose names more than half of its own are."""
    for arch in architectures().values():
        spelled = [(DIFFUSERS, ("", "")), (DIFFUSERS, ("", f"{arch.denoiser.name}."))]
        spelled += [(SINGLE_FILE, (prefix, arch.denoiser.stored)) for prefix in PREFIXES]
        for keymap, begins in spelled:
            needed = _needed(arch, keymap)
            there = {_begun(info.name, begins) for info in source}.intersection(needed)
            if 2 * len(there) > len(source.tensors):
                yield Reading(arch, keymap, begins, tuple(each for each in needed if each not in there))


def _namings(arch: Architecture, source: TensorSource) -> Iterator[tuple[str, tuple[str, str]]]:
    """The key maps that a file's names may be of, and what begins the denoiser's names in the file, and in the map."""
    denoiser = arch.denoiser
    canonical = f"{denoiser.name}.{denoiser.sentinel}"
    stored = next(slot.stored for slot in denoiser.slots() if slot.parameter == canonical)
    if canonical in source.tensors:
        yield DIFFUSERS, ("", "")
    elif denoiser.sentinel in source.tensors:
        yield DIFFUSERS, ("", f"{denoiser.name}.")
    inner = stored.removeprefix(denoiser.stored)
    for prefix in PREFIXES:
        if prefix + inner in source.tensors:
            yield SINGLE_FILE, (prefix, denoiser.stored)


def _begun(name: str, begins: tuple[str, str]) -> str:
    old, new = begins
    return new + name.removeprefix(old) if old != new and name.startswith(old) else name


def _needed(arch: Architecture, keymap: str) -> list[str]:
    """The denoiser's names, as the key map stores them."""
    slots = arch.keymap(keymap).slots.values()
    begin = f"{arch.denoiser.name}."
    return [slot.stored for slot in slots if slot.parameter.startswith(begin) and not slot.optional]


def _size(reading: Reading) -> int:
    return len(_needed(reading.arch, reading.keymap))


def _read(
    reading: Reading, source: TensorSource
) -> tuple[Mapping[str, Parameter], Mapping[str, TensorInfo]]:
    keymap = reading.arch.keymap(reading.keymap)
    # A component without a table keeps its names, whatever they are.
    kept = tuple(f"{part.name}." for part in reading.arch.parts if next(part.slots(), None) is None)
    parameters: dict[str, Parameter] = {}
    leftovers: dict[str, TensorInfo] = {}
    for info in source:
        name = reading.spell(info.name)
        slots = keymap.read(name)
        if not slots and reading.keymap == DIFFUSERS and name.startswith(kept):
            slots = (Slot(name, name),)
        if not slots:
            leftovers[info.name] = info
        for slot in slots:
            if slot.parameter in parameters:
                what = f"{info.path}: {info.name!r} is there in two spellings"
                raise FormatError(what, "keep one of them")
            parameters[slot.parameter] = _parameter(slot, info)
    return MappingProxyType(parameters), MappingProxyType(leftovers)


def _parameter(slot: Slot, info: TensorInfo) -> Parameter:
    """The slot as this file has it: its own spelling, and linears where it has no 1×1 convolutions."""
    view = slot.view
    if not view.splits(info.shape):
        what = f"{info.path}: {info.name!r} of shape {list(info.shape)} is not {view.of} equal parts"
        raise FormatError(what, "the file is damaged: download or make it again")
    slot = replace(slot, stored=info.name, view=view.fitting(info.shape))
    return Parameter(slot, info, slot.view.shape(info.shape))
