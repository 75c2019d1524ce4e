"""A recipe's sources made exact: which files they are now, where they lie, and what kind of accelerator they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lcmmerge import refs
from lcmmerge.accelerators import ACCELERATORS, Accelerator, accelerator, by_reference
from lcmmerge.archs import identify
from lcmmerge.errors import RecipeError
from lcmmerge.recipe.loader import Loaded
from lcmmerge.recipe.lock import Lock, Locked
from lcmmerge.recipe.schema import Source
from lcmmerge.refs.hub import file_sha256
from lcmmerge.refs.weights import local_tree, small_files
from lcmmerge.tensors.remote import open_reference


@dataclass(frozen=True, slots=True)
class Found:
    """A source that was looked at. ``reference``: what it is fetched by; ``configs``: only its small files are used."""

    name: str
    reference: str
    locked: Locked
    accelerator: Accelerator | None
    configs: bool


Sources = dict[str, Found]


def find(loaded: Loaded, lock: Lock | None = None) -> Sources:
    """Every source that the recipe uses, at the commit of ``lock`` where that has it.

    An accelerator's name stands for its file for the bases' architecture.
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
        found[name] = _found(name, source, reference, kind, lock, configs=name in only_configs)
    return found


def _found(
    name: str, source: Source, reference: str, kind: Accelerator | None, lock: Lock | None, *, configs: bool
) -> Found:
    parsed = refs.parse(reference, name)
    before = lock.get(name) if lock else None
    if parsed.kind == "hub":
        kind = kind or by_reference(f"{refs.HUB}{parsed.repo}/{parsed.path_in_repo}")
        if before and before.commit and before.names(source):
            parsed = refs.parse(parsed.at(before.commit), name)
    if configs:
        files, commit, stated = _small(parsed, name)
    else:
        pin = refs.pin(parsed.text, name, source.variant)
        files, commit, stated = pin.files, pin.commit, pin.license
    if before and before.commit == commit:
        stated = stated or before.license  # which is unknown without a network
    uri = parsed.at(commit) if commit else None
    locked = Locked(source.reference, source.variant, uri, commit, stated, files)
    return Found(name, uri or reference, locked, kind, configs)


def _small(parsed: refs.Reference, name: str) -> tuple[tuple[refs.PinnedFile, ...], str | None, str | None]:
    """The files, commit and licence of a folder that gives its configs alone."""
    hub = refs.repository(parsed, name) if parsed.kind == "hub" else None
    folder = refs.configs(parsed.at(hub.commit) if hub else parsed.text)
    files = tuple(
        refs.PinnedFile(file, (folder / file).stat().st_size, file_sha256(folder / file))
        for file in small_files(local_tree(folder))
    )
    return (files, hub.commit, hub.license) if hub else (files, None, None)


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
