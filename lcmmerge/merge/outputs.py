"""What tensors an output holds, in either layout, and which operands each is made of. Headers only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lcmmerge.archs import Model, Slot, is_ema
from lcmmerge.archs.unet import LDM
from lcmmerge.errors import FormatError
from lcmmerge.merge.operand import Operand
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE


@dataclass(frozen=True, slots=True)
class Draft:
    """A tensor to be written: one operand, or several one after another (OpenCLIP's fused q, k, v).

    ``folder`` is the component's subfolder in a diffusers layout, else empty. ``transposed``: written as [in, out].
    ``converts``: follows ``--dtype``; leftovers that are no parameters keep their dtype.
    """

    folder: str
    name: str
    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    transposed: bool = False
    converts: bool = True


def drafts(base: Model, layout: str, *, drop_ema: bool) -> tuple[list[Draft], tuple[str, ...]]:
    """The tensors of the output in the base's reading order, and the names of what is left out."""
    if layout == base.layout:
        return _as_it_is(base, drop_ema=drop_ema)
    if base.layout == "component":
        raise FormatError(f"{base.source.path}: the U-Net alone makes no whole model", "leave --layout away")
    _refuse_strangers(base)
    return _to_diffusers(base) if layout == DIFFUSERS else _to_single_file(base)


def _refuse_strangers(base: Model) -> None:
    """A part of the U-Net without a canonical name (a full LCM's ``cond_proj``) would be lost on the way."""
    for name in base.leftovers:
        if name.startswith((LDM, "unet.")):
            raise FormatError(
                f"{base.source.path}: {name!r} belongs to its U-Net and has no name in the other layout",
                "leave --layout away: it keeps every tensor",
            )


def _as_it_is(base: Model, *, drop_ema: bool) -> tuple[list[Draft], tuple[str, ...]]:
    stored: dict[str, list[str]] = {}
    for name, parameter in base.parameters.items():
        stored.setdefault(parameter.info.name, []).append(name)
    chosen, dropped = [], []
    for info in base.source:
        folder, _, inner = info.name.partition(".") if base.layout == DIFFUSERS else ("", "", info.name)
        if info.name in base.leftovers:
            ema = is_ema(info.name)
            if ema and drop_ema:
                dropped.append(info.name)
            else:
                chosen.append(Draft(folder, inner, info.shape, (Operand.of_tensor(info),), converts=ema))
            continue
        names = sorted(stored[info.name], key=lambda name: base.parameters[name].slot.part)
        operands = tuple(Operand.of_parameter(name, base.parameters[name]) for name in names)
        chosen.append(Draft(folder, inner, info.shape, operands, operands[0].transposed))
    return chosen, tuple(dropped)


def _to_diffusers(base: Model) -> tuple[list[Draft], tuple[str, ...]]:
    chosen = []
    for name, parameter in base.parameters.items():
        folder, _, inner = name.partition(".")
        chosen.append(Draft(folder, inner, parameter.shape, (Operand.of_parameter(name, parameter),)))
    return chosen, tuple(base.leftovers)


def _to_single_file(base: Model) -> tuple[list[Draft], tuple[str, ...]]:
    slots = base.arch.keymap(SINGLE_FILE).slots
    groups: dict[str, list[Slot]] = {}
    for name in base.parameters:
        groups.setdefault(slots[name].stored, []).append(slots[name])
    return [_assembled(base, sorted(group, key=lambda slot: slot.part)) for group in groups.values()], tuple(
        base.leftovers
    )


def _assembled(base: Model, group: list[Slot]) -> Draft:
    slot = group[0]
    if len(group) != slot.parts:
        raise FormatError(
            f"{base.source.path}: {slot.stored} needs {slot.parts} parameters, and it has only {slot.parameter}",
            "the text encoder is incomplete: get the whole model",
        )
    shape = base.parameters[slot.parameter].shape
    if slot.transposed:
        shape = shape[::-1]
    if slot.conv1x1:
        shape = (*shape, 1, 1)
    shape = (shape[0] * slot.parts, *shape[1:])
    operands = tuple(Operand.of_parameter(slot.parameter, base.parameters[slot.parameter]) for slot in group)
    return Draft("", slot.stored, shape, operands, slot.transposed)


def by_folder(chosen: list[Draft]) -> Iterator[tuple[str, list[Draft]]]:
    """The drafts of each weight file, in order of first appearance."""
    folders: dict[str, list[Draft]] = {}
    for draft in chosen:
        folders.setdefault(draft.folder, []).append(draft)
    yield from folders.items()


def weights_stem(folder: str) -> str:
    """diffusers names its models' files differently from transformers'."""
    return "diffusion_pytorch_model" if folder in ("unet", "vae") else "model"
