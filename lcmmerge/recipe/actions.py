"""Doing a step: made beside what is there, recorded as ours, and then put in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.merge.fuse import fuse
from lcmmerge.merge.report import Report
from lcmmerge.output import Output
from lcmmerge.recipe import studies
from lcmmerge.recipe.card import card
from lcmmerge.recipe.exports import export
from lcmmerge.recipe.images import generate
from lcmmerge.recipe.manifest import RunManifest, record
from lcmmerge.recipe.steps import Step
from lcmmerge.refs.files import inside
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors.made import files_at, refuse_strangers, strangers
from lcmmerge.tensors.staging import Staging


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run works; ``force``: replace what no run made."""

    out: Path
    description: str | None
    force: bool
    output: Output


def do(step: Step, done: RunManifest, site: Site) -> RunManifest:
    """``done``: what this run has done until now; returned with the step. Raises what the step does, OutputError."""
    target = inside(site.out, step.target)
    target.parent.mkdir(exist_ok=True)
    with Staging(target, resumes="a study" if step.kind == "search" else None) as staging:
        content = staging.folder / target.name
        figures = ACTIONS[step.kind](step, content, done, site)
        found = record(step.key, content, step.target, _recorded(step, content), figures)
        if not site.force:  # what came while the step was done
            refuse_strangers(strangers(site.out, target, done.made), target)
        done = done.about_to(found)
        done.write(site.out)
        staging.commit_folder()
    done = done.with_step(step.name, found).without_gone(site.out, found.outputs)
    done.write(site.out)
    return done


def _recorded(step: Step, content: Path) -> Iterator[str]:
    """The files whose change makes the step due again: of a study those for people and programs."""
    if content.is_file():
        yield ""
    elif step.kind == "search":
        yield from studies.shown(content)
    else:
        yield from (path.relative_to(content).as_posix() for path in files_at(content))


def _fuse(step: Step, content: Path, done: RunManifest, site: Site) -> dict[str, Any]:
    plan = step.build.plan
    if plan.layout != DIFFUSERS:
        content.mkdir()
    plan = replace(plan, target=content if plan.layout == DIFFUSERS else content / plan.target.name)
    report = fuse(plan, settings=step.build.settings, force=site.force, output=site.output, title=step.name)
    return _figures(report, sum(path.stat().st_size for path in files_at(content)))


def _card(step: Step, content: Path, done: RunManifest, site: Site) -> dict[str, Any]:
    content.write_text(card(step.build, done.steps[f"fuse {step.build.cell.name}"], site.description), "utf-8")
    return {}


def _generate(step: Step, content: Path, done: RunManifest, site: Site) -> dict[str, Any]:
    section = step.build.cell.generate
    assert section is not None  # or there would be no such step
    return generate(step.build, section, step.build.plan.result, content, site.output)


def _search(step: Step, content: Path, done: RunManifest, site: Site) -> dict[str, Any]:
    section = step.build.cell.search
    assert section is not None  # or there would be no such step
    return studies.search(step.build, section, content, site.out / step.target, site.output)


def _export(step: Step, content: Path, done: RunManifest, site: Site) -> dict[str, Any]:
    section = step.build.cell.export
    assert section is not None  # or there would be no such step
    return export(step.build, section, content, site.output)


ACTIONS: Mapping[str, Callable[[Step, Path, RunManifest, Site], dict[str, Any]]] = {
    "fuse": _fuse,
    "card": _card,
    "search": _search,
    "generate": _generate,
    "export": _export,
}


def _figures(report: Report, nbytes: int) -> dict[str, Any]:
    """What the checks look at. ``coverage``: the share of a term's keys that found a home."""
    said = report.as_dict()
    return {
        "bytes": nbytes,
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
