"""What tensors an output holds, in either layout, and which operands each is made of. Headers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lcmmerge.archs import Model, Parameter, Slot, View, is_ema, tiles
from lcmmerge.errors import FormatError
from lcmmerge.merge.operand import Operand
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE

MODEL = "diffusion_pytorch_model"


@dataclass(frozen=True, slots=True)
class Draft:
    """A tensor to be written: rows of operands, one after another (OpenCLIP's fused q, k, v).

    ``folder`` is the component's subfolder in a diffusers layout, else empty. ``parts``: operand, and from which of its
    rows to which. ``transposed``: written as [in, out]. ``converts``: follows ``--dtype``; leftovers that are no
    parameters keep their dtype.
    """

    folder: str
    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Operand, int, int], ...]
    transposed: bool = False
    converts: bool = True

    @classmethod
    def of(cls, folder: str, name: str, operand: Operand, *, converts: bool = True) -> Draft:
        """A tensor that is one operand, as it is."""
        return cls(folder, name, operand.shape, ((operand, 0, operand.rows),), converts=converts)

    @classmethod
    def through(cls, folder: str, name: str, views: Sequence[View], parameters: Sequence[Parameter]) -> Draft | None:
        """The tensor that parameters make up in these views of it; None where they do not."""
        found = tiles(views, [parameter.shape for parameter in parameters])
        if found is None:
            return None
        operands = [Operand.of_parameter(parameter.name, parameter) for parameter in parameters]
        parts = tuple((operands[tile.number], tile.begin, tile.end) for tile in found[1])
        return cls(folder, name, found[0], parts, views[0].transposed)


def drafts(base: Model, layout: str, *, drop_ema: bool) -> tuple[list[Draft], tuple[str, ...]]:
    """The tensors of the output in the base's reading order, and the names of what is left out."""
    if layout == base.layout:
        return _as_it_is(base, drop_ema=drop_ema)
    if base.layout == "component":
        raise FormatError(
            f"{base.source.path}: the {base.arch.denoiser.kind} alone makes no whole model", "omit --layout"
        )
    _refuse_strangers(base)
    return _to_diffusers(base) if layout == DIFFUSERS else _to_single_file(base)


def _refuse_strangers(base: Model) -> None:
    """A part of the denoiser without a canonical name (a full LCM's ``cond_proj``) would be lost on the way."""
    denoiser = base.arch.denoiser
    for name in base.leftovers:
        if name.startswith((denoiser.stored, f"{denoiser.name}.")):
            raise FormatError(
                f"{base.source.path}: {name!r} belongs to its {denoiser.kind} and has no name in the other layout",
                "omit --layout: it keeps every tensor",
            )


def _as_it_is(base: Model, *, drop_ema: bool) -> tuple[list[Draft], tuple[str, ...]]:
    stored: dict[str, list[Parameter]] = {}
    for parameter in base.parameters.values():
        stored.setdefault(parameter.info.name, []).append(parameter)
    chosen, dropped = [], []
    for info in base.source:
        folder, _, inner = info.name.partition(".") if base.layout == DIFFUSERS else ("", "", info.name)
        if info.name in base.leftovers:
            ema = is_ema(info.name)
            if ema and drop_ema:
                dropped.append(info.name)
            else:
                chosen.append(Draft.of(folder, inner, Operand.of_tensor(info), converts=ema))
            continue
        parameters = stored[info.name]
        if folder:  # by the canonical names: transformers 4 does not read those of 5, without text_model.
            inner = parameters[0].name.removeprefix(f"{folder}.")
        views = [parameter.slot.view for parameter in parameters]
        draft = Draft.through(folder, inner, views, parameters)
        assert draft  # they were cut from it
        chosen.append(draft)
    return chosen, tuple(dropped)


def _to_diffusers(base: Model) -> tuple[list[Draft], tuple[str, ...]]:
    chosen = []
    for name, parameter in base.parameters.items():
        folder, _, inner = name.partition(".")
        chosen.append(Draft.of(folder, inner, Operand.of_parameter(name, parameter)))
    return chosen, tuple(base.leftovers)


def _to_single_file(base: Model) -> tuple[list[Draft], tuple[str, ...]]:
    slots = base.arch.keymap(SINGLE_FILE).slots
    groups: dict[str, list[Slot]] = {}
    for name in base.parameters:
        if name not in slots:
            raise FormatError(
                f"{base.source.path}: {name!r} has no name in a single file of {base.arch.title}", "omit --layout"
            )
        groups.setdefault(slots[name].stored, []).append(slots[name])
    return [_assembled(base, group) for group in groups.values()], tuple(base.leftovers)


def _assembled(base: Model, group: list[Slot]) -> Draft:
    parameters = [base.parameters[slot.parameter] for slot in group]
    draft = Draft.through("", group[0].stored, [slot.view for slot in group], parameters)
    if draft is None:
        names = ", ".join(slot.parameter for slot in group)
        raise FormatError(
            f"{base.source.path}: {group[0].stored} is made of more than {names}, which it has only",
            "the component is incomplete: get the whole model",
        )
    return draft


def by_folder(chosen: list[Draft]) -> Iterator[tuple[str, list[Draft]]]:
    """The drafts of each weight file, in order of first appearance."""
    folders: dict[str, list[Draft]] = {}
    for draft in chosen:
        folders.setdefault(draft.folder, []).append(draft)
    yield from folders.items()


def weights_stem(folder: str) -> str:
    """diffusers names its models' files differently from transformers'."""
    return "model" if folder.startswith(("text_encoder", "image_encoder", "safety_checker")) else MODEL
