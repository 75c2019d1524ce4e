"""A recipe file, what ``--set`` changes in it, and the outputs that its matrix spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from lcmmerge.recipe.document import Document, Fault, Place, invalid, parse_scalar, read_document
from lcmmerge.recipe.faults import dangling_faults, meant, schema_faults, used_sources
from lcmmerge.recipe.lock import lock_path
from lcmmerge.recipe.manifest import EXPORTS, IMAGES, STUDIES
from lcmmerge.recipe.manifest import NAME as MANIFEST
from lcmmerge.recipe.schema import Export, Fuse, Generate, Recipe, Search, as_source, as_term
from lcmmerge.refs import files

MAX_CELLS = 256


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One output, and what is drawn with it. ``name`` is its folder."""

    name: str
    fuse: Fuse
    search: Search | None = None
    generate: Generate | None = None
    export: Export | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recipe without faults. ``unused``: sources that no cell speaks of."""

    path: Path
    recipe: Recipe
    cells: tuple[MatrixCell, ...]
    unused: tuple[str, ...]


def load(path: Path, sets: Sequence[str] = ()) -> Loaded:
    """``sets``: ``lambda.style=0.7``, ``fuse.dtype=bf16``. Raises NotFoundError, RecipeError with every fault."""
    document = read_document(path)
    for text in sets:
        place, value = _assignment(text, document)
        document = replace(document, tree=_set(document.tree, place, 0, value))
    trees = _spanned(document)
    recipes = {label: Recipe.model_validate(tree) for label, tree in trees.items()}
    recipe = next(iter(recipes.values()))
    cells = tuple(
        MatrixCell(_name(path, cell.fuse, label), cell.fuse, cell.search, cell.generate, cell.export)
        for label, cell in recipes.items()
    )
    place, reserved = ("fuse", "output"), (MANIFEST, lock_path(path).name, IMAGES, STUDIES, EXPORTS)
    for name in (cell.name for cell in cells):
        if name in reserved or not files.is_inside(name):
            reason = "is a name that every run needs" if name in reserved else "cannot name a folder on every system"
            raise invalid(document.name, [Fault(place, f"{name!r} {reason}", document.line(place))])
    used = set().union(*map(used_sources, trees.values()))
    return Loaded(path, recipe, cells, tuple(name for name in recipe.sources if name not in used))


def _spanned(document: Document) -> dict[str, Any]:
    """The recipe's tree for each output, by its label; without a matrix one, labelled "". Raises RecipeError."""
    axes = _axes(document)
    if (count := prod(len(values) for _, values in axes)) > MAX_CELLS:
        raise invalid(document.name, [_of_matrix(document, f"spans {count} outputs, of at most {MAX_CELLS}")])
    trees: dict[str, Any] = {}
    faults: dict[Fault, None] = {}
    for values in product(*(values for _, values in axes)):
        tree, labels = document.tree, []
        for (path, _), value in zip(axes, values, strict=True):
            tree = _set(tree, place_of(path), 0, value)
            labels.append(_label(path, value))
        varied = replace(document, tree=tree)
        faults |= dict.fromkeys([*schema_faults(varied), *dangling_faults(varied)])
        if (label := "-".join(labels)) in trees:
            faults[_of_matrix(document, f"two outputs would be called {label!r}")] = None
        trees[label] = tree
    if faults:
        raise invalid(document.name, list(faults))
    return trees


def place_of(path: str) -> Place:
    """``lambda.style`` is the λ of the term ``style``; any other path begins at the recipe's root."""
    parts = tuple(path.split("."))
    return ("fuse", "terms", parts[1], "lambda") if len(parts) == 2 and parts[0] == "lambda" else parts


def _set(tree: Any, place: Place, depth: int, value: Any) -> Any:
    """A copy of what is at ``place[:depth]``, with another value at the place; shorthands there are written out."""
    if depth == len(place):
        return value
    match place[:depth]:
        case ("sources", _):
            tree = as_source(tree)
        case ("fuse", "terms", _):
            tree = as_term(tree)
    found = tree if isinstance(tree, dict) else {}
    return {**found, place[depth]: _set(found.get(place[depth]), place, depth + 1, value)}


def _assignment(text: str, document: Document) -> tuple[Place, Any]:
    path, equals, value = text.partition("=")
    if not (path and equals):
        raise invalid(f"--set {text}", [Fault((), "is not PATH=VALUE, such as lambda.style=0.7")])
    place = place_of(path)
    _check_term(place, document, f"--set {text}")
    return place, parse_scalar(value)


def _check_term(place: Place, document: Document, subject: str) -> None:
    """A term's λ can only be set where there is such a term: a slip would add one."""
    match document.tree, place:
        case {"fuse": {"terms": {**terms}}}, ("fuse", "terms", str(name), *_) if name not in terms:
            raise invalid(subject, [Fault(place[:3], f"there is no such term{meant(name, map(str, terms))}")])


def _axes(document: Document) -> list[tuple[str, list[Any]]]:
    """Empty where the matrix is malformed, which the schema then says."""
    matrix: Any = document.tree.get("matrix") if isinstance(document.tree, dict) else None
    if not isinstance(matrix, dict) or not all(isinstance(values, list) and values for values in matrix.values()):
        return []
    if not all(isinstance(value, str | int | float) for values in matrix.values() for value in values):
        return []
    for path in matrix:
        _check_axis(path, document)
    return list(matrix.items())


def _check_axis(path: str, document: Document) -> None:
    place = place_of(path)
    if place[0] != "fuse":
        message = "must be `lambda.TERM`, or a path that begins with fuse."
        raise invalid(document.name, [Fault(("matrix", path), message, document.line(("matrix", path)))])
    _check_term(place, document, document.name)


def _of_matrix(document: Document, message: str) -> Fault:
    return Fault(("matrix",), message, document.line(("matrix",)))


def _label(path: str, value: Any) -> str:
    """``style0.8`` of a number; words stand for themselves."""
    if isinstance(value, str):
        return re.sub(r"[^\w.-]+", "_", value)
    number = str(value).lower() if isinstance(value, bool) else f"{value:g}"
    return path.removesuffix(".lambda").rpartition(".")[2] + number


def _name(path: Path, fuse: Fuse, label: str) -> str:
    return "-".join(part for part in (fuse.output or path.stem, label) if part)
