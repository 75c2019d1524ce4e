"""A recipe's sources made exact: which files they are now, where they lie, and what kind of accelerator they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lcmmerge import refs
from lcmmerge.accelerators import ACCELERATORS, Accelerator, accelerator, by_reference, file_of
from lcmmerge.archs import identify
from lcmmerge.errors import LockError, RecipeError
from lcmmerge.recipe.lock import RELOCK, Lock, Locked
from lcmmerge.recipe.values import Strict
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.remote import open_reference
from lcmmerge.tensors.state import State, state_of


def as_source(value: Any) -> Any:
    return {"reference": value} if isinstance(value, str) else value


class RecipeSource(Strict):
    """Where a model or an adapter is."""

    reference: str = Field(
        min_length=1,
        description="A path (from the recipe's folder), hf://owner/repo[@revision][/file], or an accelerator's name.",
    )
    variant: str | None = Field(None, description="Which weights of a diffusers folder, such as fp16.")
    accelerator: Literal[tuple(ACCELERATORS)] | None = Field(  # type: ignore[valid-type]
        None, description="What kind of acceleration LoRA a file is, where its reference does not tell."
    )


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


@dataclass(frozen=True, slots=True)
class Input:
    """A source and its headers; of one that gives its configs alone where those are."""

    found: Found
    path: Path
    opened: TensorSource | None


Sources = dict[str, Found]


def find(
    sources: Mapping[str, RecipeSource],
    roles: Collection[Mapping[str, str]],
    folder: Path,
    lock: Lock | None = None,
    *,
    dry_run: bool = False,
) -> Sources:
    """Every source that an output uses, at the commit of ``lock`` where that has it.

    ``roles``: of each output, the source that is its ``base``, that its ``config_from``, and so on. ``folder``: the
    recipe's, at which paths begin. An accelerator's name stands for its file for the bases' architecture. A ``dry_run``
    takes the hashes of small files from the lock, or does without: it fetches none of them.
    Raises NotFoundError, FormatError, RecipeError.
    """
    bases = {role["base"] for role in roles}
    weights = {name for role in roles for key, name in role.items() if key != "config_from"}
    used = [name for name in sources if any(name in role.values() for role in roles)]
    found: Sources = {}
    for name in sorted(used, key=lambda name: name not in bases):  # an accelerator's file depends on the base
        source = sources[name]
        path = folder / source.reference
        reference = str(path) if path.exists() else source.reference
        kind = accelerator(source.accelerator) if source.accelerator else None
        if reference in ACCELERATORS and not Path(reference).exists():
            kind = ACCELERATORS[reference]
            reference = _file_of(kind, name, [found[base] for base in sorted(bases & found.keys())])
        found[name] = _found(name, source, reference, kind, lock, configs=name not in weights, dry_run=dry_run)
    return found


def opened(sources: Sources, *, dry_run: bool) -> dict[str, Input]:
    """Their headers: no weights are downloaded, and for a ``dry_run`` neither pickles nor tokenizers.

    Raises NotFoundError, FormatError.
    """
    return {name: _input(found, dry_run=dry_run) for name, found in sources.items()}


def refuse_drifted(output: str, inputs: Iterable[Input]) -> None:
    """Read every source anew: a failing disk, or a damaged cache, shows in the bytes alone. Raises LockError."""
    drifted = [
        f"{item.found.name}: {file} has another sha256"
        for item in inputs
        for name, sha256 in item.found.locked.hashes.items()
        if (file := (item.path if item.path.is_dir() else item.path.parent) / name).is_file()
        and sha256_of([file], reread=True) != sha256
    ]
    if drifted:
        raise LockError(f"{output}: its sources are not those of the lock", RELOCK, drifted)


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
        if before and before.commit and (before.reference, before.variant) == (source.reference, source.variant):
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
    files = {file_of(kind, identify(source).arch) for source in opened}
    if len(files) != 1:
        raise RecipeError(f"{name}: {kind.name} is another file for each base", "name the files themselves")
    return files.pop()


def _input(found: Found, *, dry_run: bool) -> Input:
    if found.configs:
        return Input(found, refs.configs(found.reference, tokenizers=not dry_run), None)
    source = open_reference(found.reference, found.name, found.locked.variant, pickles=not dry_run)
    if found.states:  # what is on the Hub has its hashes from there
        folder = source.path if source.path.is_dir() else source.path.parent
        known = {folder / file: sha256 for file, sha256 in found.locked.hashes.items()}
        source = replace(source, sha256=known, states={**source.states, **found.states})
    return Input(found, source.path, source)
