"""Is a file the merge that it says it is? Recompute it, and compare instead of writing: no second copy anywhere."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from lcmmerge.archs.modelspec import HASH
from lcmmerge.archs.prediction import MARKS
from lcmmerge.bake.execute import Layout, execute
from lcmmerge.bake.outcome import Settings
from lcmmerge.errors import NotFoundError, VerificationError
from lcmmerge.history import RECIPE, record_of
from lcmmerge.merge.layout import PlannedFile, PlannedTensor
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.recorded import read_merge, replan
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors import DType, TensorInfo, TensorSource
from lcmmerge.tensors.blockio import PAGE, Buffer, Files
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.source import read_local


@dataclass(frozen=True, slots=True)
class Different:
    """A tensor that is not what the recipe gives, and why: ``largest`` is max |stored − computed| of its values."""

    name: str
    largest: float | None
    reason: str = "values"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: an infinite difference is null."""
        largest = self.largest if self.largest is not None and isfinite(self.largest) else None
        return {"name": self.name, "reason": self.reason, "largest": largest}


@dataclass(frozen=True, slots=True)
class Verified:
    """What a recomputed merge says of a file.

    ``stale``: files whose recorded hash is not that of the recomputed tensors, in the file's order. ``merges``: the
    sources that are merges of ours themselves.
    """

    path: Path
    tensors: int
    different: tuple[Different, ...]
    stale: tuple[str, ...]
    merges: tuple[TensorSource, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "tensors": self.tensors,
            "equal": self.tensors - len(self.different),
            "different": [item.as_dict() for item in self.different],
            "stale_hashes": list(self.stale),
        }

    def check(self) -> None:
        """Raises VerificationError where anything differs."""
        if self.different and all(item.name in MARKS for item in self.different):
            marks = ", ".join(f"{item.name} is {item.reason}" for item in self.different)
            raise VerificationError(
                f"{self.path}: its weights are what its recipe gives, but not its marks of what it predicts: {marks}",
                "it was merged before they were written, or its base says something else now: merge it again",
            )
        if self.different:
            few = ", ".join(item.name for item in self.different[:3]) + (", …" if len(self.different) > 3 else "")
            raise VerificationError(
                f"{self.path}: {len(self.different)} of {self.tensors} tensors are not what its recipe gives: {few}",
                "it was changed after the merge; or merged on another --device, which may round otherwise",
            )
        if self.stale:
            raise VerificationError(
                f"{self.path}: the hash recorded in {self.stale[0]} is not that of its tensors",
                "each tensor is right: the metadata were changed, or the order in which tensors lie",
            )


class _Findings:
    """What the files' comparers share: ``largest`` by tensor, of those that differ."""

    def __init__(self, inputs: Files) -> None:
        self.largest: dict[str, float] = {}
        self._inputs, self._lock, self._local = inputs, threading.Lock(), threading.local()

    def compare(self, info: TensorInfo, skip: int, computed: memoryview) -> None:
        """The stored bytes from ``skip`` on with the computed ones."""
        stored = self._read(info, skip, len(computed))
        if torch.equal(_bytes(stored), _bytes(computed)):
            return
        largest = _largest(stored, computed, info.dtype)
        with self._lock:
            self.largest[info.name] = max(self.largest.get(info.name, 0.0), largest)

    def _read(self, info: TensorInfo, skip: int, nbytes: int) -> memoryview:
        into, spare = getattr(self._local, "buffers", (Buffer(0), Buffer(0)))
        self._local.buffers = into, spare = into.fitting(nbytes), spare.fitting(nbytes)
        return self._inputs.read(info.path, info.offset + skip, into.memory[:nbytes], spare)


@dataclass(frozen=True, slots=True)
class _Comparer:
    """In the place of a file's writer: what would be written is compared with what is there.

    ``begins``: where each of ``infos`` would lie; None for what is not there as planned.
    """

    infos: Sequence[TensorInfo | None]
    begins: Sequence[int]
    findings: _Findings

    def write(self, buffer: Buffer, offset: int, nbytes: int) -> None:
        """``nbytes`` for file ``offset``, in ``buffer`` from ``offset % PAGE`` on; the header is before all begins."""
        end, number = offset + nbytes, max(bisect_right(self.begins, offset) - 1, 0)
        while number < len(self.infos) and self.begins[number] < end:
            info, begin = self.infos[number], self.begins[number]
            if info and (low := max(offset, begin)) < (high := min(end, begin + info.nbytes)):
                start = offset % PAGE + low - offset
                self.findings.compare(info, low - begin, buffer.memory[start : start + high - low])
            number += 1

    def finish(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass


def verify(
    source: TensorSource,
    places: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008 - frozen
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Verified:
    """Recompute ``source`` from the sources its recipe names, found in ``places``: paths, or references to the Hub.

    Raises FormatError (no merge of ours), NotFoundError, VerificationError (a source is another one), and what a merge
    does.
    """
    plan = replan(read_merge(source), source.path, places)
    files, different = _as_stored(plan, source)
    for wanted in (source, *plan.sources.values()):
        wanted.fetch()
    unlike, stored = {item.name for item in different}, {info.name: info for info in source.stored}
    with Files() as inputs:
        findings = _Findings(inputs)

        def open_writer(path: Path, layout: Layout) -> _Comparer:
            specs = {
                name.removesuffix(tensor.spec.name) + spec.name: spec
                for name, tensor in files[path].items()
                for spec in tensor.specs
            }
            there = [None if name in unlike else stored.get(name) for name in specs]
            return _Comparer(there, layout.offsets, findings)

        said = plan.files[0].architecture
        planned = [PlannedFile(path, tuple(tensors.values()), architecture=said) for path, tensors in files.items()]
        outcome = execute(
            replace(plan, files=tuple(planned)),
            Path(),
            lambda file, sha256, *, final: {},
            settings,
            progress,
            open_writer,
        )
    different += [Different(name, value) for name, value in sorted(findings.largest.items())]
    recorded = {path: read_local(path)[1].get(HASH) for path in files}
    stale = [
        path.name for path, sha256 in zip(files, outcome.sha256, strict=True) if recorded[path] != f"0x{sha256}"
    ]
    merges = [item for item in plan.sources.values() if record_of(item, RECIPE).get("type") == "lcmmerge"]
    return Verified(source.path, len(stored), tuple(different), tuple(stale), tuple(merges))


def verify_sources(
    merge: Verified, places: Sequence[str], settings: Settings = Settings()  # noqa: B008 - frozen
) -> Iterator[Verified | TensorSource]:
    """The merges that a merge was made of, and those that these were; one whose own sources are not here as it is.

    Raises what ``verify`` does, but for NotFoundError.
    """
    for source in merge.merges:
        try:
            found = verify(source, places, settings)
        except NotFoundError:
            yield source
            continue
        yield found
        yield from verify_sources(found, places, settings)


def _as_stored(plan: Plan, source: TensorSource) -> tuple[dict[Path, dict[str, PlannedTensor]], list[Different]]:
    """What the plan holds in the files and the order in which it is stored, and what is not the same at all.

    Companions follow their tensor, wherever they are stored.
    """
    planned: dict[str, tuple[TensorSpec, PlannedTensor]] = {}
    for file in plan.files:
        prefix = f"{file.path.parts[0]}." if plan.layout == DIFFUSERS else ""
        planned |= {prefix + spec.name: (spec, tensor) for tensor in file.tensors for spec in tensor.specs}
    files: dict[Path, dict[str, PlannedTensor]] = {path: {} for path in source.files}
    different = []
    for info in sorted(source.stored, key=lambda info: (source.files.index(info.path), info.offset)):
        if info.name not in planned:
            different.append(Different(info.name, None, "not in the merge"))
            continue
        spec, tensor = planned.pop(info.name)
        if (spec.dtype, spec.shape) != (info.dtype, info.shape):
            different.append(Different(info.name, None, "dtype or shape"))
        elif spec is tensor.spec:
            files[info.path][info.name] = tensor
    return files, different + [Different(name, None, "missing") for name in planned]


def _bytes(data: memoryview) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)


def _largest(stored: memoryview, computed: memoryview, dtype: DType) -> float:
    """NaN, in either, counts as infinitely far."""
    one, other = (torch.frombuffer(data, dtype=dtype.torch).double() for data in (stored, computed))
    return float((one - other).abs().nan_to_num(torch.inf, torch.inf).max())
