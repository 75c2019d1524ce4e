"""A dense task vector τ = θ_ft − θ_base → a LoRA: the best approximation of the wanted rank, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcmmerge.archs import Model, kohya_name
from lcmmerge.errors import IncompatibleError, NumericError, UnmatchedKeysError
from lcmmerge.merge import lorafile
from lcmmerge.merge.lorafile import Layer, Made
from lcmmerge.merge.lowrank import spectrum
from lcmmerge.merge.terms import Checkpoint, Difference, Term, likely_cause, match, open_term
from lcmmerge.tensors import DTYPES, DType, TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.staging import check_target

LOW_RANK, LEFT_OUT = "low rank", "left out"
HEADROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """``energy``: the share of each ‖Δ‖² that is enough, None for the full ``rank`` everywhere; ``full``: norms and
    biases too, which a plain LoRA does not have.
    """

    rank: int = 64
    energy: float | None = None
    dtype: DType = DTYPES["F16"]
    full: bool = False


@dataclass(frozen=True, slots=True)
class Extracted:
    """``left_out``: changed parameters that the file does not hold."""

    output: str
    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]
    energy: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "energy": self.energy,
            "layers": [layer.as_dict() for layer in self.layers],
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter, and how it is stored: ``LOW_RANK`` under ``key``, whole under ``key.role``, or ``LEFT_OUT``."""

    difference: Difference
    key: str
    role: str

    @property
    def name(self) -> str:
        return self.difference.tuned.name


def open_tuned(path: Path, base: Model) -> Term:
    """The fine-tuned checkpoint. Raises IncompatibleError where it is an adapter already."""
    term = open_term("tuned", path, 1.0, base)
    if not isinstance(term.content, Checkpoint):
        raise IncompatibleError(f"{path}: is an adapter already", "name a fine-tuned checkpoint")
    return term


def extract(
    tuned: Term,
    base: Model,
    target: Path,
    settings: Settings,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Extracted:
    """Write the LoRA; ``progress`` is told of every parameter that is done.

    Raises UnmatchedKeysError, ShapeMismatchError, NoEffectError (nothing was tuned), NumericError, OutputError.
    """
    matched = match(0, tuned, base, {})
    if matched.unmatched:
        few = ", ".join(matched.unmatched[:3])
        raise UnmatchedKeysError(
            f"{tuned.path}: {len(matched.unmatched)} of its parameters are not in {base.source.path.name}: {few}",
            likely_cause(tuned, base),
        )
    differences = [item for item in matched.contributions.values() if isinstance(item, Difference)]
    targets = [_target(difference, base, settings) for difference in differences]
    specs = [spec for target in targets for spec in _specs(target, settings)]
    sources = {"base": base.source, "tuned": _source(tuned)}
    inputs = [path for source in sources.values() for path in (source.path, *source.files)]
    check_target(target, force=force, needed=sum(spec.nbytes for spec in specs) + HEADROOM, inputs=inputs)
    with ThreadPoolExecutor(1, "lcmmerge-hash") as pool:
        hashes = {name: pool.submit(sha256_of, source.files) for name, source in sources.items()}
        ready = False

        def describe(sha256: str) -> dict[str, str]:
            known = {name: future.result() if ready else "0" * 64 for name, future in hashes.items()}
            recipe = _recipe(sources, known, settings)
            return lorafile.metadata(base.arch, f"{tuned.path.stem} − {base.source.path.stem}", recipe, sha256)

        return _write(target, targets, specs, settings, describe, progress)
