"""Doing a step: what it writes, and what of it is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.merge.fuse import fuse
from lcmmerge.merge.report import Report
from lcmmerge.output import Output
from lcmmerge.recipe.builds import Build
from lcmmerge.recipe.card import card
from lcmmerge.recipe.exports import export
from lcmmerge.recipe.images import generate
from lcmmerge.recipe.manifest import EXPORTS, IMAGES, STUDIES, Manifest, Record, record
from lcmmerge.recipe.steps import CARD, Step, written
from lcmmerge.recipe.studies import search
from lcmmerge.refs.weights import DIFFUSERS, MODEL_INDEX
from lcmmerge.tensors.staging import write_text


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run works. ``before``: what it found there; ``force``: replace what another run wrote."""

    out: Path
    before: Manifest
    description: str | None
    force: bool
    output: Output


def do(step: Step, done: Manifest, site: Site) -> Record:
    """``done``: what this run has done until now. Raises what the step does."""
    return ACTIONS[step.kind](step, done, site)


def _fuse(step: Step, done: Manifest, site: Site) -> Record:
    build, folder = step.build, site.out / step.build.cell.name
    if build.cell.name in site.before.folders:
        _make_way(build, site.before, site.out)
    if build.plan.layout != DIFFUSERS:
        folder.mkdir(exist_ok=True)
    with site.output.progress(step.name, build.plan.nbytes) as progress:
        report = fuse(build.plan, configs=build.configs, settings=build.settings, force=site.force, progress=progress)
    found = record(step.key, site.out, written(build, site.out), {})
    return replace(found, figures=_figures(report, found))


def _card(step: Step, done: Manifest, site: Site) -> Record:
    path = site.out / step.build.cell.name / CARD
    write_text(path, card(step.build, done.steps[f"fuse {step.build.cell.name}"], site.description))
    return record(step.key, site.out, [path], {})


def _generate(step: Step, done: Manifest, site: Site) -> Record:
    name, section = step.build.cell.name, step.build.cell.generate
    assert section is not None  # or there would be no such step
    paths, figures = generate(step.build, section, step.build.plan.result, site.out / IMAGES / name, site.output)
    return record(step.key, site.out, paths, figures)


def _search(step: Step, done: Manifest, site: Site) -> Record:
    name, section = step.build.cell.name, step.build.cell.search
    assert section is not None  # or there would be no such step
    paths, figures = search(step.build, section, site.out / STUDIES / name, site.output)
    return record(step.key, site.out, paths, figures)


def _export(step: Step, done: Manifest, site: Site) -> Record:
    name, section = step.build.cell.name, step.build.cell.export
    assert section is not None  # or there would be no such step
    paths, figures = export(step.build, section, site.out / EXPORTS / name, site.output)
    return record(step.key, site.out, paths, figures)


ACTIONS: Mapping[str, Callable[[Step, Manifest, Site], Record]] = {
    "fuse": _fuse,
    "card": _card,
    "search": _search,
    "generate": _generate,
    "export": _export,
}


def _make_way(build: Build, before: Manifest, out: Path) -> None:
    """Remove this run's own earlier outputs: those recorded, and what a killed run did not come to record."""
    name, folder = build.cell.name, out / build.cell.name
    if (folder / MODEL_INDEX).exists():
        shutil.rmtree(folder)
    records = [found for kind in ("fuse", "card") if (found := before.steps.get(f"{kind} {name}"))]
    for path in (*(out / path for found in records for path in found.outputs), *written(build, out)):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _figures(report: Report, found: Record) -> dict[str, Any]:
    """What the checks look at. ``coverage``: the share of a term's keys that found a home."""
    said = report.as_dict()
    return {
        "bytes": sum(item["bytes"] for item in found.outputs.values()),
        "coverage": {
            term: reached / (reached + len(report.unmatched.get(term, ())))
            for term in dict.fromkeys(row.term for row in report.rows)
            if (reached := sum(row.parameters for row in report.rows if row.term == term))
        },
        "rows": said["coverage"],
        "unmatched": {name: list(keys) for name, keys in report.unmatched.items()},
        "dropped": said["dropped"],
        "tensors_sha256": said["sha256"],
    }
