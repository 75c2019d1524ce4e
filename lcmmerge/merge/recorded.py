"""The recipe that a merged file carries (see ``provenance``), and the sources that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lcmmerge import refs
from lcmmerge.archs import identify
from lcmmerge.errors import FormatError, NotFoundError, VerificationError
from lcmmerge.merge.blocks import BlockWeights
from lcmmerge.merge.plan import Options, Plan, plan_fuse
from lcmmerge.merge.provenance import RECIPE
from lcmmerge.merge.terms import term_of
from lcmmerge.tensors import DTYPES, TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.remote import open_reference


@dataclass(frozen=True, slots=True)
class Named:
    """A source: its file's or folder's name, the sha256 of its weights where recorded, and which variant they are."""

    name: str
    sha256: str | None
    variant: str | None

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Self:
        return cls(str(recorded["name"]), recorded["sha256"], recorded.get("variant"))


@dataclass(frozen=True, slots=True)
class RecordedTerm:
    name: str
    strength: float
    source: Named
    tuned_from: Named | None
    weights: BlockWeights

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Self:
        tuned_from = Named.of(recorded["tuned_from"]) if "tuned_from" in recorded else None
        weights = {str(block): float(factor) for block, factor in recorded.get("block_weights", {}).items()}
        strength = float(recorded["lambda"])
        return cls(str(recorded["term"]), strength, Named.of(recorded), tuned_from, BlockWeights(weights))


@dataclass(frozen=True, slots=True)
class Recipe:
    version: str
    base: Named
    terms: tuple[RecordedTerm, ...]
    options: Options
    rounding_seed: int | None


def read_recipe(source: TensorSource) -> Recipe:
    """Raises FormatError where the file is no merge of ours."""
    text = source.metadata.get(RECIPE)
    if text is None:
        raise FormatError(f"{source.path}: records no merge recipe", "only what `lcmmerge fuse` wrote can be verified")
    try:
        recorded = json.loads(text)
        if recorded["type"] != "lcmmerge":
            raise FormatError(
                f"{source.path}: was made by {recorded['type']}", "only what `lcmmerge fuse` wrote can be verified"
            )
        dtype = DTYPES[recorded["dtype"]] if recorded["dtype"] else None
        options = Options(dtype, recorded["layout"], bool(recorded["drop_ema"]), None, recorded["allow_unmatched"])
        terms = tuple(RecordedTerm.of(term) for term in recorded["terms"])
        return Recipe(recorded["version"], Named.of(recorded["base"]), terms, options, recorded["rounding_seed"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{source.path}: its merge recipe is damaged", "get the file again") from None


def replan(recipe: Recipe, target: Path, places: Sequence[str]) -> Plan:
    """The merge that the recipe tells, from sources found in ``places``. Headers only.

    Raises NotFoundError, FormatError, VerificationError.
    """
    base = identify(find(recipe.base, places))
    terms = [
        term_of(
            term.name,
            find(term.source, places),
            term.strength,
            base,
            origin=find(term.tuned_from, places) if term.tuned_from else None,
            weights=term.weights,
        )
        for term in recipe.terms
    ]
    return plan_fuse(base, terms, target, recipe.options)


def find(source: Named, places: Sequence[str]) -> TensorSource:
    """The source in the first of the ``places`` that has it: a folder around it, or the source under any name.

    Places are paths or on the Hub, whose record of the sha256 is enough. Raises NotFoundError, VerificationError.
    """
    strangers = []
    for reference in _candidates(source.name, [refs.parse(place, "source") for place in places]):
        found = open_reference(reference, "source", source.variant, pickles=True)
        if _is(found, source):
            return found
        if refs.name_of(found.path) == source.name:
            strangers.append(reference)
    if strangers:
        raise VerificationError(
            f"{strangers[0]}: is not the {source.name} that was merged: its sha256 differs",
            f"name the one with sha256 {(source.sha256 or '')[:12]}… by --source",
        )
    raise NotFoundError(f"source {source.name!r} is not here", "name it, or the folder that it is in, by --source")


def _is(found: TensorSource, source: Named) -> bool:
    """By its hash; where none was recorded, by its name: the comparison of the merges then tells."""
    if source.sha256 is None:
        return refs.name_of(found.path) == source.name
    return sha256_of(found.files, known=found.sha256, reread=True) == source.sha256


def _candidates(name: str, places: Sequence[refs.Reference]) -> Iterator[str]:
    """By name first: others are hashed only where that fails."""
    others = []
    for place in places:
        if place.name == name:
            yield place.text
        elif place.kind == "local":
            if (place.path / name).exists():
                yield str(place.path / name)
            elif place.path.is_file():
                others.append(place.text)
        else:
            held = refs.repository(place, "source")
            if held.within(name) in held.files:
                yield f"{place.at(held.commit)}/{name}"
            elif held.name:
                others.append(place.text)
    yield from others
