"""Is what lies in a run's folder still what the run made, and of the sources that a lock names?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lcmmerge.errors import LockError, VerificationError
from lcmmerge.merge.recorded import read_merge
from lcmmerge.recipe.lock import Locked, parse_sources, read_lock
from lcmmerge.recipe.manifest import NAME, RunManifest, read_manifest
from lcmmerge.refs.weights import PICKLES, SAFETENSORS, has_suffix
from lcmmerge.tensors import open_source
from lcmmerge.tensors.digest import sha256_of


def is_run(path: Path) -> bool:
    return (path / NAME).is_file()


def verify_run(out: Path, lock: Path | None = None) -> RunManifest:
    """Compare every output with its record, and the sources that it names with ``lock``, or with the run's own.

    Raises VerificationError, LockError, NotFoundError, FormatError.
    """
    manifest = read_manifest(out)
    changed = [name for name, record in sorted(manifest.steps.items()) if not record.intact(out, reread=True)]
    if changed:
        raise VerificationError(
            f"{out}: {len(changed)} steps' outputs are gone or were changed",
            "`lcmmerge run` makes them again",
            changed,
        )
    sources = read_lock(lock) if lock else parse_sources(manifest.sources, out / NAME)
    known = {_weights_sha256(source) for source in sources.values()}
    strange = [f"{name}: {line}" for name in manifest.folders for line in _strange(out / name, known)]
    if strange:
        cause = f"{out}: {len(strange)} sources are not those of {lock or NAME}"
        raise LockError(cause, "run the recipe again", strange)
    return manifest


def _strange(folder: Path, known: set[str]) -> Iterator[str]:
    """The sources of a merge that no lock knows."""
    merge = read_merge(open_source(folder))
    named = [merge.base, *(term.source for term in merge.terms), *(term.made_from for term in merge.terms)]
    strange = [source for source in named if source and source.sha256 not in known]
    yield from (f"{source.reference} {(source.sha256 or 'no hash')[:12]}…" for source in strange)


def _weights_sha256(locked: Locked) -> str:
    """As a merge records a source; nothing is read."""
    known = {Path(file.path): file.sha256 for file in locked.files if has_suffix(file.path, SAFETENSORS, PICKLES)}
    return sha256_of(known, known=known)
