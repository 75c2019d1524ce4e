"""What tensors an output holds, in either layout, and which operands each is made of. Headers only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lcmmerge.archs import Model, Parameter, Slot, View, is_ema, tiles
from lcmmerge.archs.completed import lent
from lcmmerge.archs.positions import position_ids, right_positions
from lcmmerge.archs.prediction import ASKED, EPSILON, MARKS, V
from lcmmerge.errors import FormatError, IncompatibleError
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import DTYPES, TensorInfo
from lcmmerge.terms.operand import Operand

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


def drafts(
    base: Model, layout: str, *, drop_ema: bool, mend_position_ids: bool = False
) -> tuple[list[Draft], tuple[str, ...]]:
    """The tensors of the output in the base's reading order, and the names of what is left out.

    What another checkpoint lent the base comes last. Of what a model predicts a single file has marks, where that is
    not usual.
    """
    if layout == base.layout:
        chosen, dropped = _as_it_is(base, drop_ema=drop_ema)
        return (list(_mended(base, chosen)) if mend_position_ids else chosen), dropped
    _refuse_partial(base, layout)
    _refuse_strangers(base)
    chosen = _to_diffusers(base) if layout == DIFFUSERS else [*_to_single_file(base, base.parameters), *_marks(base)]
    return chosen, tuple(name for name in base.leftovers if name not in MARKS)


def denoiser_drafts(base: Model) -> tuple[list[Draft], tuple[str, ...]]:
    """The denoiser alone by a single file's names, without what stands before them there; and what is left out."""
    denoisers = [part for part in base.arch.parts if part.stored == base.arch.denoiser.stored]
    own = [name for name in base.parameters if name.startswith(tuple(f"{part.name}." for part in denoisers))]
    begin = base.arch.denoiser.stored
    begins = (begin,) if base.layout == SINGLE_FILE else (begin, f"{base.arch.denoiser.name}.")
    chosen = [replace(draft, name=draft.name.removeprefix(begin)) for draft in _to_single_file(base, own)]
    dropped = [name for name in base.parameters if name not in own]
    for name, info in base.leftovers.items():
        inner = next((name.removeprefix(each) for each in begins if name.startswith(each)), None)
        if inner is None and base.layout == "component":
            inner = name
        if inner is None or is_ema(name):
            dropped.append(name)
        else:
            chosen.append(Draft.of("", inner, Operand.of_tensor(info), converts=False))
    return chosen, tuple(dropped)


def _refuse_partial(base: Model, layout: str) -> None:
    """In another layout a model is for another program, which is to find all of it."""
    path, cure = base.source.path, "take them from another checkpoint with --parts-from, or omit --layout"
    if base.components == (base.arch.denoiser.name,):
        raise IncompatibleError(f"{path}: the {base.arch.denoiser.kind} alone makes no whole model", cure)
    if lacking := base.lacking:
        raise IncompatibleError(f"{path}: has no {', no '.join(lacking)}, and makes no whole {layout} model", cure)
    if missing := base.missing:
        more = f", and {len(missing) - 1} tensors more" if len(missing) > 1 else ""
        raise IncompatibleError(f"{path}: lacks {missing[0]}{more}, and makes no whole {layout} model", cure)


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
    marked_anew = base.layout == SINGLE_FILE and base.prediction.told_by == ASKED
    stored: dict[str, list[Parameter]] = {}
    for parameter in base.parameters.values():
        stored.setdefault(parameter.info.name, []).append(parameter)
    chosen, dropped = [], []
    for info in base.source:
        folder, _, inner = info.name.partition(".") if base.layout == DIFFUSERS else ("", "", info.name)
        if marked_anew and info.name in MARKS:
            continue
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
    chosen += _lent(base)
    if marked_anew:
        chosen += _marks(base)
    return chosen, tuple(dropped)


def _lent(base: Model) -> list[Draft]:
    """What another checkpoint gave, by the names that the base's layout has for it."""
    parameters = lent(base)
    own = next(iter(base.parameters.values()))  # some single files have diffusers' names
    if base.layout == SINGLE_FILE and own.info.name != own.name:
        return _to_single_file(base, parameters)
    drafts = []
    for name, parameter in parameters.items():
        folder, _, inner = name.partition(".") if base.layout == DIFFUSERS else ("", "", name)
        drafts.append(Draft.of(folder, inner, Operand.of_parameter(name, parameter)))
    return drafts


def _mended(base: Model, chosen: list[Draft]) -> Iterator[Draft]:
    """With 0, 1, 2 … for position_ids, as CLIP was trained with."""
    stored = {info.name: info for info in position_ids(base)}
    for draft in chosen:
        info = stored.get(f"{draft.folder}.{draft.name}" if draft.folder else draft.name)
        if info:
            like = replace(info, dtype=DTYPES["I64"])
            operand = Operand.of_bytes(info.name, right_positions(info.numel), like)
            draft = Draft.of(draft.folder, draft.name, operand, converts=False)
        yield draft


def _marks(base: Model) -> list[Draft]:
    """Empty tensors that tell what it predicts. EDM's hold numbers that only its own files know; others have none."""
    found = base.prediction
    if found.kind == base.arch.family.prediction and not found.zero_snr:
        return []
    if found.kind not in (EPSILON, V):
        raise IncompatibleError(
            f"{base.source.path}: {found}, which a single file made of it would not say", "omit --layout"
        )
    empty = TensorInfo("", DTYPES["F32"], (0,), base.source.files[0], 0, 0)
    return [Draft.of("", name, Operand.of_bytes(name, b"", empty), converts=False) for name in found.marks]


def _to_diffusers(base: Model) -> list[Draft]:
    chosen = []
    for name, parameter in base.parameters.items():
        folder, _, inner = name.partition(".")
        chosen.append(Draft.of(folder, inner, Operand.of_parameter(name, parameter)))
    return chosen


def _to_single_file(base: Model, parameters: Iterable[str]) -> list[Draft]:
    slots = base.arch.keymap(SINGLE_FILE).slots
    groups: dict[str, list[Slot]] = {}
    for name in parameters:
        if name not in slots:
            raise FormatError(
                f"{base.source.path}: {name!r} has no name in a single file of {base.arch.title}", "omit --layout"
            )
        groups.setdefault(slots[name].stored, []).append(slots[name])
    return [_assembled(base, group) for group in groups.values()]


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
