"""What a search found: as data, and the cell that was chosen as a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lcmmerge.merge.spec import Blocks, Merge, Source
from lcmmerge.search.diagnostics import Overlap
from lcmmerge.search.request import PreparedSearch
from lcmmerge.search.score import Scored
from lcmmerge.version import __version__

VERSION = 1


@dataclass(frozen=True, slots=True)
class Result:
    """A finished search. ``diagnostics``: of every layer that two terms change."""

    prepared: PreparedSearch
    scored: Scored
    diagnostics: tuple[Overlap, ...]

    @property
    def merge(self) -> Merge:
        """What was searched, at the λs found."""
        return self.prepared.merge(self.scored.best.cell)

    @property
    def command(self) -> str:
        return self.merge.command()

    def as_dict(self) -> dict[str, Any]:
        """Plain data: what study.json holds."""
        return {
            "version": VERSION,
            "lcmmerge": __version__,
            "terms": list(self.prepared.names),
            "objective": self.prepared.request.objective,
            **self.scored.as_dict(),
            "command": self.command,
            "inputs": dict(self.prepared.inputs),
            "prompts": list(self.prepared.request.prompts),
            "diagnostics": [found.as_dict() for found in self.diagnostics],
        }

    def recipe(self, path: Path) -> str:
        """YAML for ``lcmmerge run``, to be written to ``path``: local files are named from its folder."""
        merge = self.merge
        sources = {"base": _source(merge.base, path)}
        terms = {}
        for term, vector in zip(merge.terms, self.prepared.plan.terms, strict=True):
            sources[term.name] = _source(term.source or Source(term.accelerator or ""), path)
            if term.source and term.accelerator:
                sources[term.name]["accelerator"] = term.accelerator
            terms[term.name] = {"lambda": term.strength, **_factors(term.blocks, vector.weights.factors)}
            if term.made_from:
                sources[f"{term.name}_base"] = _source(term.made_from, path)
                terms[term.name]["tuned_from"] = f"{term.name}_base"
            if term.expert:
                terms[term.name]["expert"] = term.expert
            if term.alpha is not None:
                terms[term.name]["alpha"] = term.alpha
        content = {"version": 1, "sources": sources, "fuse": {"base": "base", "terms": terms}}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _source(source: Source, path: Path) -> dict[str, str]:
    local = Path(source.reference).exists()
    place = os.path.relpath(source.reference, path.resolve().parent) if local else source.reference
    return {"reference": place, **({"variant": source.variant} if source.variant else {})}


def _factors(blocks: Blocks, parsed: Mapping[str, float]) -> dict[str, Any]:
    """``IN00-IN05=0.5,M00=0`` as it stands; one number per block as they were ``parsed``."""
    if isinstance(blocks, str):
        pairs = [pair.split("=") for pair in blocks.split(",")] if "=" in blocks else []
        named: Mapping[str, float] = {span.strip(): float(factor) for span, factor in pairs} or parsed
    else:
        named = blocks
    return {"block_weights": dict(named)} if named else {}
