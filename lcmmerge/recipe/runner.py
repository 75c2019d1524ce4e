"""A run: what it will do, from headers and records alone, and then doing it, step by step.

A finished step is recorded in ``run.json`` and is not done again; what was interrupted is done anew. One run at a time
works in a folder: others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.errors import OutputError
from lcmmerge.extras import check_installed
from lcmmerge.merge.fuse import HEADROOM
from lcmmerge.merge.outcome import Settings
from lcmmerge.merge.provenance import refuse_fused
from lcmmerge.output import Output
from lcmmerge.recipe.actions import Site, do
from lcmmerge.recipe.builds import Build, builds, refuse_drifted
from lcmmerge.recipe.card import disagreement
from lcmmerge.recipe.checks import checked, refuse_missed
from lcmmerge.recipe.loader import Loaded
from lcmmerge.recipe.lock import Lock, check_lock, lock_path, lock_text, read_lock
from lcmmerge.recipe.manifest import RunManifest, read_manifest
from lcmmerge.recipe.sources import Sources, find
from lcmmerge.recipe.steps import Step, extras, steps
from lcmmerge.refs.files import inside, read_bytes
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.made import refuse_strangers, strangers
from lcmmerge.tensors.staging import write_text

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
class PreparedRun:
    """Everything about a run that is known before the first weight is read.

    ``foreign``: files that it replaces, and that no run made.
    """

    loaded: Loaded
    asked: RunRequest
    lock: Lock
    builds: tuple[Build, ...]
    steps: tuple[Step, ...]
    before: RunManifest
    foreign: tuple[Path, ...]

    @property
    def doubts(self) -> tuple[str, ...]:
        unused = (f"the source {name} is used by nothing" for name in self.loaded.unused)
        misfits = (f"{build.cell.name}: {doubt}" for build in self.builds for doubt in build.plan.doubts)
        kept = {build.cell.name for build in self.builds}
        stray = (f"{name} is of an earlier run, and stays as it is" for name in self.before.folders if name not in kept)
        lost = (f"{path} is replaced, which no run made" for path in self.foreign)
        return (*unused, *misfits, *filter(None, map(disagreement, self.builds)), *stray, *lost)

    def as_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.loaded.path.name,
            "steps": [step.as_dict() for step in self.steps],
            "sources": {name: locked.as_dict() for name, locked in sorted(self.lock.items())},
            "doubts": list(self.doubts),
        }


def lock_of(loaded: Loaded) -> Lock:
    """What the recipe's sources are now. Raises NotFoundError, FormatError."""
    return {name: found.locked for name, found in find(loaded).items()}


def prepare(loaded: Loaded, asked: RunRequest, *, dry_run: bool = False) -> PreparedRun:
    """Find the sources, compare them with the lock, plan every output, and see what is done already.

    Raises LcmMergeError where an extra that a step needs is not installed, NotFoundError, FormatError, LockError,
    OutputError, AlreadyFusedError, and every IncompatibleError.
    """
    check_installed(*extras(loaded.cells))
    sources = _sources(loaded, asked, dry_run=dry_run)
    planned = builds(loaded.cells, sources, asked.out, asked.settings, dry_run=dry_run)
    before = read_manifest(asked.out)
    todo = tuple(steps(planned, before, asked.out, loaded.recipe.description))
    foreign = list(_foreign(todo, before, asked.out))
    fused = [step.build for step in todo if step.kind == "fuse" and step.due]
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
        site = Site(asked.out, loaded.recipe.description, asked.force, output)
        for step in prepared.steps:
            if step.due:
                manifest = do(step, manifest, site)
        return prepared, _end(manifest, prepared)


def _fetched(prepared: PreparedRun) -> PreparedRun:
    for step in prepared.steps:
        if step.kind == "fuse" and step.due:
            step.build.plan.fetch()
            if prepared.asked.locked:
                refuse_drifted(step.build)
    return prepared


def _foreign(todo: tuple[Step, ...], before: RunManifest, out: Path) -> Iterator[Path]:
    """What the steps would replace, and no run made. Raises FormatError for a link on the way."""
    made = before.made
    for step in todo:
        if step.due:
            yield from strangers(out, inside(out, step.target), made)


def _sources(loaded: Loaded, asked: RunRequest, *, dry_run: bool) -> Sources:
    path = lock_path(loaded.path)
    lock = read_lock(path) if asked.locked or path.exists() else None
    sources = find(loaded, lock, dry_run=dry_run)
    if asked.locked and lock is not None:
        check_lock(lock, {name: found.locked for name, found in sources.items()}, loaded.path)
    return sources


def _begin(prepared: PreparedRun) -> RunManifest:
    """Record what is done already, and what earlier runs made, which is there until a step replaces it."""
    out, loaded = prepared.asked.out, prepared.loaded
    done = {step.name: prepared.before.steps[step.name] for step in prepared.steps if not step.due}
    recipe = {
        "name": loaded.path.name,
        "sha256": hashlib.sha256(read_bytes(loaded.path)).hexdigest(),
        "set": list(prepared.asked.sets),
    }
    folders = tuple(build.cell.name for build in prepared.builds)
    sources = {name: locked.as_dict() for name, locked in sorted(prepared.lock.items())}
    manifest = RunManifest(recipe, folders, done, (), sources, prepared.before.made)
    manifest = manifest.without_gone(out, {path for record in done.values() for path in record.outputs})
    manifest.write(out)
    lock = out / lock_path(loaded.path).name
    if lock.resolve() != lock_path(loaded.path).resolve():  # the recipe's own is `lcmmerge lock`'s to write
        write_text(lock, lock_text(prepared.lock))
    return manifest


def _end(manifest: RunManifest, prepared: PreparedRun) -> RunManifest:
    """Compare the figures with the recipe's bounds. Raises QualityError."""
    check = prepared.loaded.recipe.check
    if check is None:
        return manifest
    figures = {
        name: {**manifest.steps[f"fuse {name}"].figures, **_found(manifest, name)} for name in manifest.folders
    }
    found = list(checked(check, figures))
    manifest = replace(manifest, check=tuple(item.as_dict() for item in found))
    manifest.write(prepared.asked.out)
    refuse_missed(found)
    return manifest


def _found(manifest: RunManifest, name: str) -> Mapping[str, Any]:
    records = (manifest.steps.get(f"{kind} {name}") for kind in ("search", "export"))
    return {key: value for record in records if record for key, value in record.figures.items()}


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
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"{out}: needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free",
            "free some space, or write elsewhere with -o",
        )
