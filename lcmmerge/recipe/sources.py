"""A recipe's sources made exact: which files they are now, where they lie, and what kind of accelerator they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lcmmerge import refs
from lcmmerge.accelerators import ACCELERATORS, Accelerator, accelerator, by_reference
from lcmmerge.archs import identify
from lcmmerge.errors import RecipeError
from lcmmerge.recipe.loader import Loaded
from lcmmerge.recipe.lock import Lock, Locked
from lcmmerge.recipe.schema import RecipeSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.remote import open_reference
from lcmmerge.tensors.state import State, state_of


@dataclass(frozen=True, slots=True)
class Found:
    """A source that was looked at. ``reference``: what it is fetched by; ``configs``: only its small files are used.

    ``states``: of a local source's files, from before they were hashed.
    """

    name: str
    reference: str
    locked: Locked
    accelerator: Accelerator | None
    configs: bool
    states: Mapping[Path, State]


Sources = dict[str, Found]


def find(loaded: Loaded, lock: Lock | None = None, *, dry_run: bool = False) -> Sources:
    """Every source that the recipe uses, at the commit of ``lock`` where that has it.

    An accelerator's name stands for its file for the bases' architecture. A ``dry_run`` takes the hashes of small files
    from the lock, or does without: it fetches none of them.
    Raises NotFoundError, FormatError, RecipeError.
    """
    bases = {cell.fuse.base for cell in loaded.cells}
    only_configs = {cell.fuse.config_from for cell in loaded.cells} - bases - _terms(loaded)
    used = [name for name in loaded.recipe.sources if name not in loaded.unused]
    found: Sources = {}
    for name in sorted(used, key=lambda name: name not in bases):  # an accelerator's file depends on the base
        source = loaded.recipe.sources[name]
        reference = _located(source.reference, loaded.path.parent)
        kind = accelerator(source.accelerator) if source.accelerator else None
        if reference in ACCELERATORS and not Path(reference).exists():
            kind = ACCELERATORS[reference]
            reference = _file_of(kind, name, [found[base] for base in sorted(bases & found.keys())])
        found[name] = _found(name, source, reference, kind, lock, configs=name in only_configs, dry_run=dry_run)
    return found


def _found(
    name: str,
    source: RecipeSource,
    reference: str,
    kind: Accelerator | None,
    lock: Lock | None,
    *,
    configs: bool,
    dry_run: bool,
) -> Found:
    parsed = refs.parse(reference, name)
    before = lock.get(name) if lock else None
    known: Mapping[str, str] = {}
    if parsed.kind == "hub":
        kind = kind or by_reference(f"{refs.HUB}{parsed.repo}/{parsed.path_in_repo}")
        if before and before.commit and before.names(source):
            parsed, known = refs.parse(parsed.at(before.commit), name), before.hashes
    states: dict[Path, State] = {}

    def digest(path: Path) -> str:
        """Without reading it where it has not changed since it was hashed last: each run asks, and bases are large."""
        states[path] = state_of(path)
        return sha256_of([path])

    hashes = known if dry_run else None
    pin = refs.pin(parsed.text, name, source.variant, configs=configs, known=hashes, digest=digest)
    stated = pin.license
    if before and before.commit == pin.commit:
        stated = stated or before.license  # which is unknown without a network
    uri = pin.uri if pin.commit else None
    locked = Locked(source.reference, source.variant, uri, pin.commit, stated, pin.files)
    return Found(name, pin.uri, locked, kind, configs, states)


def _file_of(kind: Accelerator, name: str, bases: Iterable[Found]) -> str:
    opened = (open_reference(base.reference, base.name, base.locked.variant) for base in bases)
    files = {kind.file(identify(source).arch) for source in opened}
    if len(files) != 1:
        raise RecipeError(f"{name}: {kind.name} is another file for each base", "name the files themselves")
    return files.pop()


def _located(reference: str, folder: Path) -> str:
    """Paths begin at the recipe's folder."""
    path = folder / reference
    return str(path) if path.exists() else reference


def _terms(loaded: Loaded) -> set[str]:
    terms = [item for cell in loaded.cells for item in cell.fuse.terms.items()]
    return {term.source or name for name, term in terms} | {term.tuned_from for _, term in terms if term.tuned_from}
