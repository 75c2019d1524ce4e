"""The model card beside an output, in the Hub's format: https://huggingface.co/docs/hub/model-cards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lcmmerge import markdown
from lcmmerge.accelerators import Sampling
from lcmmerge.output import size
from lcmmerge.recipe.builds import Build, Input
from lcmmerge.recipe.lock import Locked
from lcmmerge.recipe.manifest import Record
from lcmmerge.refs import name_of

WORD = re.compile(r"[\w.+-]{1,64}")  # a licence as the Hub has it
VERSION = 1  # of what a card says; a change makes finished cards stale


def card(build: Build, fused: Record, description: str | None) -> str:
    """The same output of the same recipe has the same card."""
    title = f"# {markdown.text(build.cell.name)}\n"
    sections = [markdown.front(_front(build)), title, *_body(build, fused, description)]
    return "\n".join(sections)


def stated_licences(build: Build) -> dict[str, str]:
    """Source → licence, of those whose licence the Hub states."""
    found = {item.found.name: item.found.locked.license for item in build.inputs.values()}
    return {name: licence for name, licence in found.items() if licence}


def disagreement(build: Build) -> str | None:
    """What is to be said where the sources' licences are not the same."""
    stated = stated_licences(build)
    if len(set(stated.values())) < 2:
        return None
    listed = ", ".join(f"{name} {licence}" for name, licence in stated.items())
    return f"{build.cell.name}: its sources have different licences: {listed}. See that all of them allow your use"


def facts(build: Build, description: str | None) -> dict[str, Any]:
    """What a card depends on beside the output."""
    return {
        "description": description,
        "licences": stated_licences(build),
        "references": {role: _origin(item.found.locked, name_of(item.path)) for role, item in build.inputs.items()},
    }


def _front(build: Build) -> dict[str, Any]:
    repos = dict.fromkeys(_repo(item.found.locked) for item in build.inputs.values() if item.found.locked.uri)
    stated = set(stated_licences(build).values())
    one = stated.pop() if len(stated) == 1 else ""
    licence = {"license": one if WORD.fullmatch(one) else "other"} if stated or one else {}
    models = {"base_model": list(repos), "base_model_relation": "merge"} if repos else {}
    tags = ["lcmmerge", "merge", "lora", "text-to-image"]
    return {**models, **licence, "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}


def _body(build: Build, fused: Record, description: str | None) -> Iterator[str]:
    plan = build.plan
    if description:
        yield f"{markdown.paragraphs(description)}\n"
    terms, merge = [f"{term.strength:g}·τ({term.name})" for term in plan.terms], plan.merge
    change = " + ".join(terms) if merge.linear else f"{merge.method_text}({', '.join(terms)})"
    yield f"{plan.base.arch.title}, made by lcmmerge: θ′ = θ + {change}\n"
    if plan.accelerator:
        yield "## Drawing\n"
        yield _drawing(plan.accelerator.sampling)
    yield "## Sources\n"
    yield "| role | λ | source | licence | sha256 |\n| --- | --- | --- | --- | --- |"
    yield "\n".join(_rows(build)) + "\n"
    if doubt := disagreement(build):
        yield f"**{markdown.text(doubt)}.**\n"
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
    lines += [f"- steps: {sampling.steps}", f"- guidance: {sampling.guidance}"]
    return "\n".join(lines + [f"- {key}: {value:g}" for key, value in sampling.arguments.items()]) + "\n"


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
    fuse = build.cell.fuse.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    return {"version": 1, "sources": sources, "fuse": fuse | {"output": build.cell.name}}


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
