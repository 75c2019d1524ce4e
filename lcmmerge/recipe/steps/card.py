"""The model card beside an output, in the Hub's format: https://huggingface.co/docs/hub/model-cards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from lcmmerge import markdown
from lcmmerge.accelerators import Sampling
from lcmmerge.bake.report import kept_in_words
from lcmmerge.history import before, formula
from lcmmerge.output import size
from lcmmerge.recipe.lock import Locked
from lcmmerge.recipe.manifest import Record
from lcmmerge.recipe.sources import Input
from lcmmerge.recipe.steps.base import Build, Step, StepWork
from lcmmerge.refs import name_of

WORD = re.compile(r"[\w.+-]{1,64}")  # a licence as the Hub has it


class Card(Step):
    """The same output of the same recipe has the same card."""

    target: ClassVar = "{}/README.md"
    order: ClassVar = 1
    always: ClassVar = True

    def facts(self, build: Build) -> dict[str, Any]:
        return {
            "description": build.description,
            "licences": stated_licences(build),
            "references": {role: _origin(item.found.locked, name_of(item.path)) for role, item in build.inputs.items()},
        }

    def doubts(self, build: Build) -> list[str]:
        """Where the sources' licences are not the same."""
        stated = stated_licences(build)
        if len(set(stated.values())) < 2:
            return []
        listed = ", ".join(f"{name} {licence}" for name, licence in stated.items())
        return [f"{build.name}: its sources have different licences: {listed}. See that all of them allow your use"]

    def make(self, work: StepWork) -> dict[str, Any]:
        build = work.build
        title = f"# {markdown.text(build.name)}\n"
        body = _body(build, work.done.steps[f"fuse {build.name}"])
        work.content.write_text("\n".join([markdown.front(_front(build)), title, *body]), "utf-8")
        return {}


def stated_licences(build: Build) -> dict[str, str]:
    """Source → licence, of those whose licence the Hub states."""
    found = {item.found.name: item.found.locked.license for item in build.inputs.values()}
    return {name: licence for name, licence in found.items() if licence}


def _front(build: Build) -> dict[str, Any]:
    repos = dict.fromkeys(_repo(item.found.locked) for item in build.inputs.values() if item.found.locked.uri)
    stated = set(stated_licences(build).values())
    one = stated.pop() if len(stated) == 1 else ""
    licence = {"license": one if WORD.fullmatch(one) else "other"} if stated or one else {}
    models = {"base_model": list(repos), "base_model_relation": "merge"} if repos else {}
    tags = ["lcmmerge", "merge", "lora", "text-to-image"]
    return {**models, **licence, "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}


def _body(build: Build, fused: Record) -> Iterator[str]:
    plan = build.plan
    if build.description:
        yield f"{markdown.paragraphs(build.description)}\n"
    terms, merge = [f"{term.strength:g}·τ({term.name})" for term in plan.terms], plan.merge
    change = " + ".join(terms) if merge.linear else f"{merge.method_text}({', '.join(terms)})"
    yield f"{plan.base.arch.title}, made by lcmmerge: θ′ = θ + {change}\n"
    if plan.accelerator:
        yield "## Drawing\n"
        yield _drawing(plan.accelerator.sampling)
    yield "## Sources\n"
    yield "| role | λ | source | licence | sha256 |\n| --- | --- | --- | --- | --- |"
    yield "\n".join(_rows(build)) + "\n"
    if merges := before(plan.sources.values()):
        yield "Of these, merges themselves:\n"
        yield "\n".join(f"- {markdown.text(f'{name} = {formula(recipe)}')}" for name, recipe in merges.items()) + "\n"
    for doubt in Card().doubts(build):
        yield f"**{markdown.text(doubt)}.**\n"
    for obligation in plan.obligations:
        yield f"**{markdown.text(obligation)}.**\n"
    if (rounding := fused.figures.get("rounding")) and (kept := kept_in_words(rounding)):
        yield "## Rounding\n"
        yield f"{markdown.text(kept)}\n"
    yield "## Files\n"
    yield "| file | size | sha256 |\n| --- | --- | --- |"
    yield "\n".join(_files(fused)) + "\n"
    yield "## Recipe\n"
    yield f"{markdown.fenced(effective(build))}\n"
    yield f"sha256 of all that it depends on: `{build.key}`\n"


def _files(fused: Record) -> Iterator[str]:
    for path, item in fused.outputs.items():
        yield f"| {markdown.text(path)} | {size(item['bytes'])} | {markdown.code(item['sha256'])} |"


def _drawing(sampling: Sampling) -> str:
    lines = [f"- scheduler: {sampling.scheduler}"]
    lines += [f"  - {key}: {value}" for key, value in sampling.settings.items()]
    return "\n".join(lines + [f"- {name}: {value}" for name, value in sampling.facts()]) + "\n"


def _rows(build: Build) -> Iterator[str]:
    strengths = {f"terms.{term.name}": f"{term.strength:g}" for term in build.plan.terms}
    for role, item in build.inputs.items():
        locked = item.found.locked
        files = (f"{markdown.text(path)} {markdown.text(sha256[:16])}…" for path, sha256 in locked.hashes.items())
        cells = (role, strengths.get(role, ""), _origin(locked, name_of(item.path)), locked.license or "")
        yield f"| {' | '.join(map(markdown.text, cells))} | {'<br>'.join(files)} |"


def effective(build: Build) -> dict[str, Any]:
    """The recipe of this output alone, with its sources at their commits; local ones by their names."""
    sources = {item.found.name: _source(item) for item in build.inputs.values()}
    fuse = build.fuse.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    return {"version": 1, "sources": sources, "fuse": fuse | {"output": build.name}}


def _source(item: Input) -> dict[str, str]:
    kind, locked = item.found.accelerator, item.found.locked
    found = {"reference": _origin(locked, name_of(item.path))}
    found |= {"variant": locked.variant} if locked.variant else {}
    return found | ({"accelerator": kind.name} if kind else {})


def _origin(locked: Locked, name: str) -> str:
    return locked.uri or name


def _repo(locked: Locked) -> str:
    """``hf://owner/repo@commit/path`` → ``owner/repo``."""
    return (locked.uri or "").removeprefix("hf://").partition("@")[0]


STEP = Card
