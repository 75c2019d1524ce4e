"""A run: what it will do, from headers and records alone, and then doing it, step by step.

A finished step is recorded in ``run.json``, with a sha256 of its inputs, parameters and our version of it, and is not
done again; what was interrupted is done anew. One run at a time works in a folder: others wait for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcmmerge.bake.fuse import HEADROOM
from lcmmerge.bake.outcome import Settings
from lcmmerge.errors import OutputError
from lcmmerge.extras import check_installed
from lcmmerge.merge.provenance import refuse_fused
from lcmmerge.output import Output
from lcmmerge.recipe.loader import Loaded
from lcmmerge.recipe.lock import Lock, check_lock, lock_text, read_lock
from lcmmerge.recipe.manifest import RunManifest, read_manifest, record
from lcmmerge.recipe.sources import Sources, find, opened, refuse_drifted
from lcmmerge.recipe.steps import Build, Step, StepWork
from lcmmerge.recipe.steps.base import step_key
from lcmmerge.recipe.steps.check import compare
from lcmmerge.recipe.steps.fuse import Fuse, builds
from lcmmerge.refs.files import inside, read_bytes
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.made import refuse_strangers, strangers
from lcmmerge.tensors.staging import Staging, write_text
from lcmmerge.tensors.targets import check_space

GUARD = ".lcmmerge.lock"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a run is asked for.

    ``locked``: the sources must be those of the lock. ``force``: replace what another run wrote.
    """

    out: Path
    sets: tuple[str, ...] = ()
    locked: bool = False
    force: bool = False
    settings: Settings = Settings()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Task:
    """A step for one output, and whether it is due.

    ``due``: why it is to be done; None where it is done. ``reads``, ``downloads`` and ``writes`` are bytes.
    """

    name: str
    step: Step
    build: Build
    key: str
    due: str | None
    reads: int
    downloads: int
    writes: int
    doubts: tuple[str, ...]

    @property
    def target(self) -> str:
        """Of its product, below the run's folder."""
        return self.step.target.format(self.build.name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "key": self.key,
            "done": self.due is None,
            "because": self.due,
            "reads": self.reads,
            "downloads": self.downloads,
            "writes": self.writes,
        }


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Everything about a run that is known before the first weight is read.

    ``steps``: in the order in which they are done. ``foreign``: files that it replaces, and that no run made.
    """

    loaded: Loaded
    asked: RunRequest
    lock: Lock
    builds: tuple[Build, ...]
    steps: tuple[Task, ...]
    before: RunManifest
    foreign: tuple[Path, ...]

    @property
    def doubts(self) -> tuple[str, ...]:
        unused = (f"the source {name} is used by nothing" for name in self.loaded.unused)
        misfits = (f"{build.name}: {doubt}" for build in self.builds for doubt in build.plan.doubts)
        kept = {build.name for build in self.builds}
        stray = (f"{name} is of an earlier run, and stays as it is" for name in self.before.folders if name not in kept)
        lost = (f"{path} is replaced, which no run made" for path in self.foreign)
        return (*unused, *misfits, *(doubt for task in self.steps for doubt in task.doubts), *stray, *lost)

    def as_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.loaded.path.name,
            "steps": [step.as_dict() for step in self.steps],
            "sources": {name: locked.as_dict() for name, locked in sorted(self.lock.items())},
            "doubts": list(self.doubts),
        }


def lock_of(loaded: Loaded) -> Lock:
    """What the recipe's sources are now. Raises NotFoundError, FormatError."""
    return {name: found.locked for name, found in _find(loaded).items()}


def prepare(loaded: Loaded, asked: RunRequest, *, dry_run: bool = False) -> PreparedRun:
    """Find the sources, compare them with the lock, plan every output, and see what is done already.

    Raises LcmMergeError where an extra that a step needs is not installed, NotFoundError, FormatError, LockError,
    OutputError, AlreadyFusedError, and every IncompatibleError.
    """
    asked_for = [step for cell in loaded.cells for step in cell.steps.values()]
    check_installed(*sorted({extra for step in asked_for for extra in step.extras()}))
    sources = _locked(loaded, asked, dry_run=dry_run)
    fuses = {cell.name: cell.fuse for cell in loaded.cells}
    planned = builds(fuses, opened(sources, dry_run=dry_run), asked.out, asked.settings, loaded.recipe.description)
    before = read_manifest(asked.out)
    todo = tuple(_tasks(loaded, planned, before, asked.out))
    foreign = list(_foreign(todo, before, asked.out))
    fused = [task.build for task in todo if task.due and isinstance(task.step, Fuse)]
    if not asked.force:
        refuse_strangers(foreign, asked.out)
        for build in fused:
            refuse_fused(build.plan)
    _check_out(asked.out, sum(build.plan.nbytes + HEADROOM for build in fused))
    lock = {name: found.locked for name, found in sources.items()}
    return PreparedRun(loaded, asked, lock, planned, todo, before, tuple(foreign))


def run(loaded: Loaded, asked: RunRequest, output: Output) -> tuple[PreparedRun, RunManifest]:
    """Do what is not done; everything is downloaded before anything is written.

    Raises what ``prepare`` and a merge do, and QualityError once everything is written.
    """
    prepared = _fetched(prepare(loaded, asked))
    with _alone(asked.out, output):
        if read_manifest(asked.out) != prepared.before:  # another run was faster
            prepared = _fetched(prepare(loaded, asked))
        for doubt in prepared.doubts:
            output.warn(doubt)
        manifest = _begin(prepared)
        for task in prepared.steps:
            if task.due:
                manifest = _do(task, manifest, asked, output)
        check = loaded.recipe.check
        return prepared, compare(check, manifest, asked.out) if check else manifest


def _locked(loaded: Loaded, asked: RunRequest, *, dry_run: bool) -> Sources:
    lock = read_lock(loaded.lock) if asked.locked or loaded.lock.exists() else None
    sources = _find(loaded, lock, dry_run=dry_run)
    if asked.locked and lock is not None:
        check_lock(lock, {name: found.locked for name, found in sources.items()}, loaded.path)
    return sources


def _find(loaded: Loaded, lock: Lock | None = None, *, dry_run: bool = False) -> Sources:
    roles = [cell.fuse.roles for cell in loaded.cells]
    return find(loaded.recipe.sources, roles, loaded.path.parent, lock, dry_run=dry_run)


def _tasks(loaded: Loaded, planned: tuple[Build, ...], before: RunManifest, out: Path) -> Iterator[Task]:
    for cell, build in zip(loaded.cells, planned, strict=True):
        follows = None
        for kind, step in cell.steps.items():
            name, key = f"{kind} {cell.name}", build.key
            if not isinstance(step, Fuse):
                key = step_key(kind, step.version, {"of": build.key, **step.facts(build)})
            due = follows or before.due(name, key, out)
            yield Task(name, step, build, key, due, *step.costs(build), tuple(step.doubts(build)))
            if due and isinstance(step, Fuse):
                follows = f"follows {name}"


def _foreign(todo: tuple[Task, ...], before: RunManifest, out: Path) -> Iterator[Path]:
    """What the steps would replace, and no run made. Raises FormatError for a link on the way."""
    made = before.made
    for task in todo:
        if task.due:
            yield from strangers(out, inside(out, task.target), made)


def _fetched(prepared: PreparedRun) -> PreparedRun:
    for task in prepared.steps:
        if task.due and isinstance(task.step, Fuse):
            task.build.plan.fetch()
            if prepared.asked.locked:
                refuse_drifted(task.build.name, task.build.inputs.values())
    return prepared


def _begin(prepared: PreparedRun) -> RunManifest:
    """Record what is done already, and what earlier runs made, which is there until a step replaces it."""
    out, loaded = prepared.asked.out, prepared.loaded
    done = {step.name: prepared.before.steps[step.name] for step in prepared.steps if not step.due}
    recipe = {
        "name": loaded.path.name,
        "sha256": hashlib.sha256(read_bytes(loaded.path)).hexdigest(),
        "set": list(prepared.asked.sets),
    }
    folders = tuple(build.name for build in prepared.builds)
    sources = {name: locked.as_dict() for name, locked in sorted(prepared.lock.items())}
    manifest = RunManifest(recipe, folders, done, (), sources, prepared.before.made)
    manifest = manifest.without_gone(out, {path for record in done.values() for path in record.outputs})
    manifest.write(out)
    lock = out / loaded.lock.name
    if lock.resolve() != loaded.lock.resolve():  # the recipe's own is `lcmmerge lock`'s to write
        write_text(lock, lock_text(prepared.lock))
    return manifest


def _do(task: Task, done: RunManifest, asked: RunRequest, output: Output) -> RunManifest:
    """A product is made beside what is there, recorded as ours, and then put in its place. Returns ``done`` with it.

    Raises what the step does, OutputError.
    """
    target = inside(asked.out, task.target)
    target.parent.mkdir(exist_ok=True)
    with Staging(target, resumes=task.step.resumes) as staging:
        content = staging.folder / target.name
        figures = task.step.make(StepWork(task.build, content, asked.out, done, asked.force, output))
        made = record(task.key, content, task.target, task.step.recorded(content), figures)
        if not asked.force:  # what came while the step was done
            refuse_strangers(strangers(asked.out, target, done.made), target)
        done = done.about_to(made)
        done.write(asked.out)
        staging.commit_folder()
    done = done.with_step(task.name, made).without_gone(asked.out, made.outputs)
    done.write(asked.out)
    return done


@contextmanager
def _alone(out: Path, output: Output) -> Iterator[None]:
    """Make the folder, and hold it. Raises OutputError where it cannot be made or written."""
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        guard = FileLock(out / GUARD)
        try:
            guard.acquire(timeout=0)
        except Timeout:
            output.note(f"Another run is at work in {out}: waiting for it.")
            guard.acquire()
        try:
            yield
        finally:
            guard.release()
    except OSError as error:
        raise output_error(out, error) from None


def _check_out(out: Path, needed: int) -> None:
    there = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise OutputError(f"{there}: not a folder that may be written to", "choose another with -o")
    check_space(out, there, needed)
