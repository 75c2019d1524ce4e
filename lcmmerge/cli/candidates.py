"""Types of words that a shell can complete: references and names. What is wrong with one is said where it is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import lcmmerge

Items = list[CompletionItem[str]]


class ReferenceType(click.ParamType[str]):
    """A path (the shell's), ``hf://…``, or ``zoo:…``: what ships with lcmmerge is listed where the word begins so."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        return [CompletionItem(incomplete, type="file"), *(_begun(incomplete, _zoo()) if incomplete[:1] == "z" else [])]


class Weighed(click.Tuple):
    """A LoRA and its λ. ``REF λ``."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        return REFERENCE.shell_complete(ctx, param, incomplete)


class NameType(click.ParamType[str]):
    """One of ``names()``, or where ``reference`` is true also a reference."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]], *, reference: bool = False) -> None:
        self._names, self._reference = names, reference

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        references = REFERENCE.shell_complete(ctx, param, incomplete) if self._reference else []
        return [*references, *_begun(incomplete, self._names())]


def accelerators() -> Iterable[str]:
    from lcmmerge.accelerators import ACCELERATORS

    return ACCELERATORS


def accelerated() -> Iterable[str]:
    """The architectures that accelerators are for."""
    from lcmmerge.accelerators import bases

    return bases()


def methods() -> Iterable[str]:
    from lcmmerge.merge.methods import methods

    return methods()


def objectives() -> list[str]:
    return [name.replace("_", "-") for name in _registered("search.objectives", "OBJECTIVE")]


def encodings() -> Iterable[str]:
    from lcmmerge.tensors.encodings import UNQUANTISED, encodings

    return UNQUANTISED, *encodings()


def targets() -> list[str]:
    return _registered("export.targets", "TARGET")


def _registered(package: str, variable: str) -> list[str]:
    """The names of ``registry.entries``, from files and not their modules, which need torch."""
    folder = Path(*lcmmerge.__path__, *package.split("."))
    defined = re.compile(rf"^{variable}\b", re.MULTILINE)
    own = [path.stem for path in folder.glob("*.py") if defined.search(path.read_text("utf-8"))]
    others = [point.name for point in entry_points(group=f"lcmmerge.{package.rpartition('.')[2]}")]
    return sorted({*own, *others})


def _zoo() -> Iterable[str]:
    zoo = Path(*lcmmerge.__path__, "zoo")
    models = (path for path in sorted(zoo.glob("*/*")) if path.is_dir() or path.suffix == ".safetensors")
    return (f"zoo:{path.relative_to(zoo).as_posix()}" for path in models)


def _begun(incomplete: str, names: Iterable[str]) -> Items:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


REFERENCE = ReferenceType()
ACCELERATOR = NameType(accelerators, reference=True)
