"""The cell that was chosen, as a merge, as the command that bakes it, and as a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lcmmerge.merge.plan import Plan
from lcmmerge.merge.request import Request
from lcmmerge.studies.blocks import BlockAxis
from lcmmerge.studies.order import Strengths


def merge_of(merge: Request, plan: Plan, strengths: Strengths, axes: Sequence[BlockAxis] = ()) -> Request:
    """What was searched, at these λs and block factors."""
    lambdas, factors = strengths[: len(plan.terms)], strengths[len(plan.terms) :]
    named = {term.name: strength for term, strength in zip(plan.terms, lambdas, strict=True)}
    rest = [strength for name, strength in named.items() if name not in ("style", "lcm")]
    adapters = tuple((reference, strength) for (reference, _), strength in zip(merge.adapters, rest, strict=True))
    weights = dict(merge.block_weights)
    for number in sorted({axis.term for axis in axes}):
        term = plan.terms[number]
        found = dict(term.weights.factors)
        found |= {axis.span: value for axis, value in zip(axes, factors, strict=True) if axis.term == number}
        weights[term.name] = ",".join(f"{span}={factor!r}" for span, factor in found.items())
    pair = named.get("style", 1.0), named["lcm"]
    return replace(merge, strengths=pair, adapters=adapters, block_weights=weights)


def command(merge: Request) -> str:
    """``lcmmerge fuse …``, to be pasted into a shell."""
    words = ["lcmmerge", "fuse", merge.base, *([merge.style] if merge.style else [])]
    words += ["--lambda", *map(repr, merge.strengths)]
    options = {
        "--lcm": merge.lcm,
        "--accelerator": merge.accelerator,
        "--tuned-from": merge.tuned_from,
        "--variant": merge.variant,
        "--config-from": merge.config_from,
        "-o": str(merge.target) if merge.target else None,
    }
    words += [word for name, value in options.items() if value for word in (name, value)]
    words += [word for reference, strength in merge.adapters for word in ("--adapter", reference, repr(strength))]
    words += [word for pair in merge.block_weights.items() for word in ("--block-weights", *pair)]
    return shlex.join(words)


def recipe(merge: Request, plan: Plan, path: Path) -> str:
    """YAML for ``lcmmerge run``, to be written to ``path``: local files are named from its folder."""
    references = [merge.style] if merge.style else []
    references += [merge.lcm or (plan.accelerator.name if plan.accelerator else "")]
    references += [reference for reference, _ in merge.adapters]
    strengths = [*([merge.strengths[0]] if merge.style else []), merge.strengths[1]]
    strengths += [strength for _, strength in merge.adapters]
    sources = {"base": _source(merge.base, path, variant=merge.variant)}
    terms = {}
    for term, reference, strength in zip(plan.terms, references, strengths, strict=True):
        kind = merge.accelerator if term.name == "lcm" else None
        sources[term.name] = _source(reference, path, accelerator=kind)
        terms[term.name] = _term(strength, _factors(merge.block_weights.get(term.name, ""), term.weights.factors))
    if merge.style and merge.tuned_from:
        sources["style_base"] = _source(merge.tuned_from, path)
        terms["style"]["tuned_from"] = "style_base"
    content = {"version": 1, "sources": sources, "fuse": {"base": "base", "terms": terms}}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _source(reference: str, path: Path, **fields: str | None) -> dict[str, str]:
    local = Path(reference).exists()
    place = os.path.relpath(reference, path.resolve().parent) if local else reference
    return {"reference": place, **{key: value for key, value in fields.items() if value}}


def _factors(text: str, parsed: Mapping[str, float]) -> Mapping[str, float]:
    """``IN00-IN05=0.5,M00=0`` as it stands; one number per block as they were ``parsed``."""
    pairs = [pair.split("=") for pair in text.split(",")] if "=" in text else []
    return {span.strip(): float(factor) for span, factor in pairs} or parsed


def _term(strength: float, factors: Mapping[str, float]) -> dict[str, Any]:
    return {"lambda": strength, **({"block_weights": dict(factors)} if factors else {})}
