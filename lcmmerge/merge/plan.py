"""The plan: everything about a merge that headers tell, as plain data, before the first weight is read.

    θ′ = θ_pre + Σ λᵢ τᵢ

A plan says which bytes of which files become which bytes of which outputs, and what is added on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcmmerge.accelerators import Accelerator
from lcmmerge.archs import Model, aliases
from lcmmerge.errors import NoEffectError
from lcmmerge.merge.operand import Operand
from lcmmerge.merge.outputs import Draft, by_folder, drafts, weights_stem
from lcmmerge.merge.terms import Checkpoint, Contribution, Matched, Term, made_elsewhere, match, unmatched_error
from lcmmerge.refs import name_of
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors import DType, TensorSource
from lcmmerge.tensors.layout import TensorSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """The unit of work: an operand, what is added to it, and how it is stored.

    Pieces of one tensor lie one after another in it (OpenCLIP's fused q, k, v). ``transposed``: written as [in, out].
    """

    operand: Operand
    dtype: DType
    transposed: bool
    contributions: tuple[Contribution, ...]

    @property
    def nbytes(self) -> int:
        return self.operand.numel * self.dtype.itemsize

    @property
    def is_copy(self) -> bool:
        """Nothing changes: the bytes are copied as they are."""
        same = self.dtype == self.operand.dtype and self.transposed == self.operand.transposed
        return same and not self.contributions


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    spec: TensorSpec
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """``path`` is relative to the output's folder; a shard names its ``index``."""

    path: Path
    tensors: tuple[PlannedTensor, ...]
    index: Path | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.spec.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many parameters of one component a term reaches."""

    term: int
    component: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Options:
    """``layout``: ``single-file`` or ``diffusers``, None for the input's; ``dtype``: None keeps each tensor's own.

    ``recipe``: the sha256 of what a recipe file asked for, which goes into the metadata.
    """

    dtype: DType | None = None
    layout: str | None = None
    drop_ema: bool = False
    max_shard_bytes: int | None = None
    allow_unmatched: bool = False
    recipe: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """``accelerator``: what the result is to be drawn with, where it is known."""

    base: Model
    terms: tuple[Term, ...]
    options: Options
    target: Path
    layout: str
    files: tuple[PlannedFile, ...]
    coverage: tuple[Coverage, ...]
    unmatched: Mapping[int, tuple[str, ...]]
    dropped: tuple[str, ...]
    accelerator: Accelerator | None = None

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def result(self) -> Path:
        """What other programs are given to load: the target, or the index of its shards."""
        index = self.files[0].index if self.layout != DIFFUSERS else None
        return self.target.parent / index if index else self.target

    @property
    def download(self) -> int:
        """Bytes of the inputs that are still on the Hub."""
        return sum(source.awaited.nbytes for source in self.sources.values() if source.awaited)

    def fetch(self) -> None:
        """Download them. Raises NotFoundError, FormatError."""
        for source in self.sources.values():
            source.fetch()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Adapters that fit by name and look made for another architecture: SSD-1B's all fit SDXL."""
        return tuple(
            f"{term.name} looks made for {made_for}, by its modules; the base is {self.base.arch.title}"
            for term in self.terms
            if (made_for := made_elsewhere(term, self.base))
        )

    @property
    def sources(self) -> Mapping[str, TensorSource]:
        """Every input, by the name under which a recipe records it."""
        found = {"base": self.base.source}
        for index, term in enumerate(self.terms):
            if isinstance(term.content, Checkpoint):
                found[f"terms.{index}"] = term.content.tuned.source
                if term.content.origin is not self.base:
                    found[f"terms.{index}.base"] = term.content.origin.source
            else:
                found[f"terms.{index}"] = term.content.source
        return found

    def as_dict(self) -> dict[str, Any]:
        """The plan, JSON-ready."""
        return {
            "architecture": self.base.arch.name,
            "purpose": self.base.purpose,
            "layout": self.layout,
            "output": str(self.result),
            "terms": [
                {
                    "name": term.name,
                    "file": name_of(term.path),
                    "lambda": term.strength,
                    "parameters": {row.component: row.parameters for row in self.coverage if row.term == index},
                    "unmatched": list(self.unmatched.get(index, ())),
                }
                for index, term in enumerate(self.terms)
            ],
            "files": [
                {"path": str(file.path), "tensors": len(file.tensors), "bytes": file.nbytes} for file in self.files
            ],
            "dropped": list(self.dropped),
            "doubts": list(self.doubts),
            "sampling": self.accelerator.sampling.as_dict() if self.accelerator else None,
            "bytes": self.nbytes,
            "download": self.download,
        }


def plan_fuse(
    base: Model, terms: Iterable[Term], target: Path, options: Options, accelerator: Accelerator | None = None
) -> Plan:
    """Match every term against the base and lay out the result.

    ``target``: a file, or the folder of a diffusers layout. Raises UnmatchedKeysError, ShapeMismatchError,
    NoEffectError (a term brings nothing), FormatError.
    """
    terms = tuple(terms)
    spellings = aliases(base)
    matches = [match(index, term, base, spellings) for index, term in enumerate(terms)]
    for term, matched in zip(terms, matches, strict=True):
        _check(term, matched, base, allow_unmatched=options.allow_unmatched)
    layout = options.layout or base.layout
    chosen, dropped = drafts(base, layout, drop_ema=options.drop_ema)
    contributions = _by_parameter(matches)
    files = tuple(
        file
        for folder, group in by_folder(chosen)
        for file in _shards(
            folder, target, [_planned(draft, contributions, options) for draft in group], _limit(base, folder, options)
        )
    )
    unmatched = {index: matched.unmatched for index, matched in enumerate(matches) if matched.unmatched}
    coverage = tuple(_coverage(matches))
    return Plan(base, terms, options, target, layout, files, coverage, unmatched, dropped, accelerator)


def _check(term: Term, matched: Matched, base: Model, *, allow_unmatched: bool) -> None:
    if matched.unmatched and not (allow_unmatched and matched.contributions):
        raise unmatched_error(
            term, matched.unmatched, len(matched.contributions) + len(matched.unmatched), base
        )
    if not matched.contributions:
        raise NoEffectError(
            f"{term.path}: holds nothing that could be merged", "look at it with `lcmmerge inspect`"
        )


def _by_parameter(matches: list[Matched]) -> dict[str, tuple[Contribution, ...]]:
    """Parameter → its contributions in recipe order. λ = 0 adds nothing, so that the base's bytes are kept."""
    gathered: dict[str, list[Contribution]] = {}
    for matched in matches:
        for name, contribution in matched.contributions.items():
            if contribution.strength != 0:
                gathered.setdefault(name, []).append(contribution)
    return {name: tuple(found) for name, found in gathered.items()}


def _planned(
    draft: Draft, contributions: Mapping[str, tuple[Contribution, ...]], options: Options
) -> PlannedTensor:
    stored = draft.operands[0].dtype
    dtype = options.dtype if options.dtype and draft.converts and stored.floating else stored
    pieces = tuple(
        Piece(operand, dtype, draft.transposed, contributions.get(operand.name, ()))
        for operand in draft.operands
    )
    return PlannedTensor(TensorSpec(draft.name, dtype, draft.shape), pieces)


def _limit(base: Model, folder: str, options: Options) -> int | None:
    """The largest file that is allowed: as asked for, else as the base's shards are, where it has shards."""
    if options.max_shard_bytes or options.layout not in (None, base.layout):
        return options.max_shard_bytes
    sizes: Counter[Path] = Counter()
    for info in base.source:
        if info.name.startswith(f"{folder}." if folder else ""):
            sizes[info.path] += info.nbytes
    return max(sizes.values()) if len(sizes) > 1 else None


def _shards(folder: str, target: Path, tensors: list[PlannedTensor], limit: int | None) -> Iterable[PlannedFile]:
    """One file, or several of at most ``limit`` bytes; a tensor is never cut.

    Wider dtypes come first, so that every tensor is aligned to its dtype.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.spec.dtype.itemsize)
    stem = f"{folder}/{weights_stem(folder)}" if folder else target.name.removesuffix(".safetensors")
    if limit is None or sum(tensor.spec.nbytes for tensor in tensors) <= limit:
        return [PlannedFile(Path(f"{stem}.safetensors"), tuple(tensors))]
    groups: list[list[PlannedTensor]] = [[]]
    room = limit
    for tensor in tensors:
        if groups[-1] and tensor.spec.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(tensor)
        room -= tensor.spec.nbytes
    index = Path(f"{stem}.safetensors.index.json")
    return [
        PlannedFile(Path(f"{stem}-{number:05}-of-{len(groups):05}.safetensors"), tuple(group), index)
        for number, group in enumerate(groups, 1)
    ]


def _coverage(matches: list[Matched]) -> Iterable[Coverage]:
    for index, matched in enumerate(matches):
        components = Counter(name.partition(".")[0] for name in matched.contributions)
        for component, count in sorted(components.items()):
            yield Coverage(index, component, count)
