"""The plan: everything about a merge that headers tell, as plain data, before the first weight is read.

    θ′ = θ_pre + Σ λᵢ τᵢ

A plan says which bytes of which files become which bytes of which outputs, and what is added on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lcmmerge import refs
from lcmmerge.accelerators import Accelerator, by_file, file_of, obligations
from lcmmerge.archs import Model, identify
from lcmmerge.archs.blocks import BlockWeights, parse_block_weights
from lcmmerge.archs.completed import completed, counted, lent
from lcmmerge.archs.positions import broken_positions
from lcmmerge.archs.rows import order_of, ordered
from lcmmerge.errors import NoEffectError, OptionError
from lcmmerge.merge.configs import check_configs
from lcmmerge.merge.layout import GGUF, PlannedFile, check_scales, container_of, lay_out
from lcmmerge.merge.like import encodings_like
from lcmmerge.merge.methods import method
from lcmmerge.merge.spec import LCM, STYLE, Merge, Source, Term, Written, blocks_text
from lcmmerge.refs import name_of
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.encodings import NONE, count_by_name, encodings
from lcmmerge.tensors.encodings.base import linears
from lcmmerge.tensors.remote import open_reference
from lcmmerge.tensors.targets import joined, safetensors_name
from lcmmerge.terms.match import (
    Checkpoint,
    Contribution,
    Matched,
    TaskVector,
    called_expert,
    limits,
    made_elsewhere,
    match,
    task_vector,
    unmatched_error,
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many parameters of one component a term reaches."""

    term: int
    component: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge whose headers are read: what each term reaches, and the files that come of it.

    ``contributions``: canonical parameter → what is added to it. ``configs``: the folder of a diffusers layout's small
    files, None for the base's. ``kinds``: of each term, which accelerator it is, where it counts and that is known.
    ``lender``: the checkpoint that completes the base; ``lent_configs``: the folder of its parts' small files, where
    the base's lacks them.
    """

    merge: Merge
    base: Model
    terms: tuple[TaskVector, ...]
    contributions: Mapping[str, tuple[Contribution, ...]]
    coverage: tuple[Coverage, ...]
    unmatched: Mapping[int, tuple[str, ...]]
    kinds: tuple[Accelerator | None, ...]
    configs: Path | None
    target: Path
    layout: str
    files: tuple[PlannedFile, ...] = ()
    dropped: tuple[str, ...] = ()
    lender: Model | None = None
    lent_configs: Path | None = None

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def accelerator(self) -> Accelerator | None:
        """What the result is to be drawn with, where it is known."""
        return next(filter(None, self.kinds), None)

    @property
    def obligations(self) -> tuple[str, ...]:
        """What the licences of the base and of accelerators ask of whoever uses or shares the result, each once."""
        return obligations(self.base, filter(None, self.kinds))

    @property
    def encodings(self) -> dict[str, int]:
        """Encoding, or dtype → how many tensors are stored in it, without what lies beside them."""
        tensors = [tensor for file in self.files for tensor in file.tensors if not tensor.is_companion]
        return dict(count_by_name(tensor.encoding for tensor in tensors).most_common())

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
        """What fits by name and may be wrong all the same.

        Adapters that look made for another architecture (SSD-1B's all fit SDXL), an accelerator for what predicts
        something else, what the base predicts, where that is only assumed; terms that are merged in part, or by a scale
        that nothing states.
        """
        found = [
            f"{term.name} looks made for {made_for}, by its modules; the base is {self.base.arch.title}"
            for term in self.terms
            if (made_for := made_elsewhere(term, self.base))
        ]
        if self.accelerator and self.base.prediction.kind != (made_for := self.accelerator.sampling.predicts):
            name = self.accelerator.name
            found.append(f"{name} is made for models that predict {made_for}; the base {self.base.prediction}")
        if self.base.doubt and not self.merge.config_from:
            found.append(self.base.doubt)
        if self.lender and not self.lent:
            found.append(f"nothing is taken from {self.lender.source.path.name}: the base lacks nothing that it has")
        if self.layout == self.base.layout and not self.merge.output.mend_position_ids:
            found += [
                f"{name} is not 0, 1, 2 …, and stays so: older programs then read words at other places; "
                "--mend-position-ids writes it anew" for name in broken_positions(self.base)
            ]
        stored, known, wanted = self.encodings, encodings(), self.merge.output.encoding
        scaled = [name for name in stored if name in known and known[name].companions]
        if scaled and self.layout == DIFFUSERS:
            found.append(f"diffusers does not read {', '.join(scaled)}: it takes the numbers without their scales")
        if isinstance(wanted, str) and known.get(wanted, NONE).takes is linears and wanted not in stored:
            found.append(f"nothing is stored in {wanted}: no linear of the denoiser's blocks is large enough, or fits")
        every = [item for items in self.contributions.values() for item in items]
        for index, term in enumerate(self.terms):
            found += limits(term, (item for item in every if item.term == index))
        return tuple(found)

    @property
    def scheduler_doubts(self) -> tuple[str, ...]:
        """An accelerator with whose scheduler a folder would be drawn, if anybody named it, or its pipeline took it."""
        fast, kind = self.merge.accelerated, self.accelerator
        if self.layout == DIFFUSERS and kind and not kind.sampling.in_folders:
            return (f"the output keeps the base's scheduler: its pipeline takes no {kind.sampling.scheduler}",)
        if self.layout != DIFFUSERS or kind or not (fast and fast.strength and fast.source):
            return ()
        what = f"which accelerator {Path(fast.source.reference).name} is cannot be told"
        cure = "name it by --accelerator, or `accelerator:` of a recipe's source; `lcmmerge accelerators` has the names"
        return (f"{what}, so the output keeps the base's scheduler: {cure}",)

    @property
    def lent(self) -> dict[str, int]:
        """Component → how many parameters of it another checkpoint gave."""
        return counted(lent(self.base)) if self.lender else {}

    @property
    def sources(self) -> Mapping[str, TensorSource]:
        """Every input, by the name under which a recipe records it."""
        found = {"base": self.base.source}
        if self.lender:
            found[PARTS] = self.lender.source
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
        lender = self.lender
        return {
            "architecture": self.base.arch.name,
            "purpose": self.base.purpose,
            "prediction": self.base.prediction.as_dict(),
            "layout": self.layout,
            "output": str(self.result),
            "method": self.merge.method_text,
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
                {"path": str(file.path), "tensors": len(file.specs), "bytes": file.nbytes} for file in self.files
            ],
            **({"parts_from": {"file": name_of(lender.source.path), "parameters": self.lent}} if lender else {}),
            "encodings": self.encodings,
            "dropped": list(self.dropped),
            "doubts": list(self.doubts),
            "sampling": self.accelerator.sampling.as_dict() if self.accelerator else None,
            "bytes": self.nbytes,
            "download": self.download,
        }


PARTS = "parts"  # the checkpoint that completes the base, among the sources
Open = Callable[[Source, str], TensorSource]  # a source, and what messages call it


def plan(
    merge: Merge,
    *,
    opened: Open | None = None,
    base: Model | None = None,
    dry_run: bool = False,
    weights_only: bool = False,
) -> Plan:
    """Resolve every reference, read headers, match the terms, and lay the files out.

    No safetensors is downloaded yet, so that what does not fit is refused before (``Plan.fetch`` does it); a
    ``dry_run`` downloads no pickle either. ``opened``: how a source is opened; ``base``: where it is opened already.
    ``weights_only``: a diffusers folder's configs are not looked for.

    Raises NotFoundError, FormatError, OptionError, and every IncompatibleError: UnmatchedKeysError,
    ShapeMismatchError, NoEffectError (a term brings nothing).
    """
    opened = opened or partial(_open, pickles=not dry_run)
    base = (base or identify(opened(merge.base, "base"))).predicting(merge.prediction)
    base = ordered(base, merge.qkv_rows)
    lender = identify(opened(merge.parts_from, PARTS)) if merge.parts_from else None
    base = completed(base, lender) if lender else base
    if like := merge.output.like:
        chosen = encodings_like(opened(like, "--like file"), base)
        merge = replace(merge, output=replace(merge.output, like=None, encoding=chosen))
    layout = _layout(merge.output, base, lender)
    configs = lent_configs = None
    if layout == DIFFUSERS != base.layout and not weights_only:
        configs = refs.configs(_configs_of(merge, base, lender))
        check_configs(configs, base)
    elif layout == DIFFUSERS and lender and lent(base) and not weights_only:
        lent_configs = refs.configs(_configs_of(merge, base, lender))
    merge = replace(
        merge,
        terms=tuple(each for term in merge.terms for each in _of_experts(term, base)),
        qkv_rows=order_of(base),  # the output's, too, which tells it as no header would
    )
    kinds = [term.kind for term in merge.terms]
    sources = [term.source or Source(_file_of(kind, base)) for term, kind in zip(merge.terms, kinds, strict=True)]
    weights = [BlockWeights() if not term.blocks else parse_block_weights(blocks_text(term.blocks), base)
               for term in merge.terms]  # fmt: skip
    vectors = tuple(
        task_vector(
            term.name,
            opened(source, term.name),
            term.strength,
            base,
            origin=opened(term.made_from, "style base") if term.made_from else None,
            weights=factors,
            expert=term.expert,
            alpha=term.alpha,
        )
        for term, source, factors in zip(merge.terms, sources, weights, strict=True)
    )
    matches = [match(index, vector, base) for index, vector in enumerate(vectors)]
    for vector, matched in zip(vectors, matches, strict=True):
        _check(vector, matched, base, allow_unmatched=merge.allow_unmatched)
    contributions = _by_parameter(matches)
    _check_method(merge, contributions)
    target = _target(merge, layout, f".{container_of(base, merge.output)}")
    files, dropped = lay_out(
        base, contributions, target, layout, merge.output, allow_unmatched=merge.allow_unmatched
    )
    if merge.output.error_aware:
        check_scales(files)
    return Plan(
        merge,
        base,
        vectors,
        contributions,
        tuple(_coverage(matches)),
        {index: matched.unmatched for index, matched in enumerate(matches) if matched.unmatched},
        tuple(map(partial(_known, base), kinds, vectors)),
        configs,
        target,
        layout,
        files,
        dropped,
        lender=lender,
        lent_configs=lent_configs,
    )


def _check_method(merge: Merge, contributions: Mapping[str, Iterable[Contribution]]) -> None:
    """Raises OptionError where more terms meet than the method merges."""
    limit = method(merge.method).terms
    most = max((len({item.term for item in items}) for items in contributions.values()), default=0)
    if limit and most > limit:
        cause = f"method {merge.method}: merges {limit} terms, and {most} change one parameter"
        raise OptionError(cause, "omit a term, give it λ 0, or choose another method")


def _layout(output: Written, base: Model, lender: Model | None) -> str:
    """As asked for, else the base's; GGUF is one file. Raises OptionError."""
    if container_of(base, output) == GGUF:
        if output.layout == DIFFUSERS or output.max_shard_bytes:
            raise OptionError("GGUF: is one file of the denoiser", "omit --layout diffusers and --max-shard-size")
        return SINGLE_FILE
    return output.layout or (SINGLE_FILE if lender and base.layout == "component" else base.layout)


def _of_experts(term: Term, base: Model) -> Iterable[Term]:
    """An accelerator that is a file for each expert, as a term for each that the base has."""
    files = term.kind.files.get(base.arch.name) if term.kind and not term.source else None
    if files is None or isinstance(files, str):
        return (term,)
    if len(base.experts) == 1:
        alone = called_expert(base.source.path, base)
        return (replace(term, source=Source(files[alone])) if alone else term,)
    wanted = {term.expert: term.name} if term.expert else {expert: f"{term.name}-{expert}" for expert in files}
    return [replace(term, name=name, source=Source(files[expert]), expert=expert) for expert, name in wanted.items()]


def _configs_of(merge: Merge, base: Model, lender: Model | None) -> str:
    """As asked for, else of the folder that completes the base, else the architecture's own."""
    if merge.config_from or not (lender and merge.parts_from and lender.layout == DIFFUSERS):
        return merge.config_from or f"{refs.HUB}{base.arch.hub}"
    return merge.parts_from.reference


def _known(base: Model, kind: Accelerator | None, vector: TaskVector) -> Accelerator | None:
    """Which accelerator a term that counts is: as it is called, else by its file."""
    if not vector.strength or kind or isinstance(vector.content, Checkpoint):
        return kind if vector.strength else None
    return by_file(vector.content, base)


def _open(source: Source, what: str, *, pickles: bool) -> TensorSource:
    return open_reference(source.reference, what, source.variant, pickles=pickles)


def _file_of(kind: Accelerator | None, base: Model) -> str:
    assert kind  # a term has a source or an accelerator
    return file_of(kind, base.arch)


def _target(merge: Merge, layout: str, suffix: str) -> Path:
    """The output as asked for, else ``base-style-lcm`` in this folder; a file's name ends in its ``suffix``."""
    style = [term.source.reference for term in merge.terms if term.name == STYLE and term.source]
    name = joined(merge.base.reference, *style, LCM)
    return merge.output.path or Path(name) if layout == DIFFUSERS else safetensors_name(merge.output.path, name, suffix)


def _check(term: TaskVector, matched: Matched, base: Model, *, allow_unmatched: bool) -> None:
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


def _coverage(matches: list[Matched]) -> Iterable[Coverage]:
    for index, matched in enumerate(matches):
        components = Counter(name.partition(".")[0] for name in matched.contributions)
        for component, count in sorted(components.items()):
            yield Coverage(index, component, count)
