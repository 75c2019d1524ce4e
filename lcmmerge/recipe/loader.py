"""A recipe file, what ``--set`` changes in it, the outputs that its matrix spans, and all its faults at once.

A fault is told with its place, its line, and what was probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lcmmerge.recipe.document import Document, Fault, Place, invalid, parse_scalar, read_document
from lcmmerge.recipe.manifest import NAME as MANIFEST
from lcmmerge.recipe.schema import Recipe
from lcmmerge.recipe.sources import as_source
from lcmmerge.recipe.steps import Step, steps
from lcmmerge.recipe.steps.fuse import Fuse, as_expert, as_term, spread
from lcmmerge.refs import files

MAX_CELLS = 256
WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false (YAML has no other words for them)",
    "dict_type": "a mapping of names",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One output, and what is done for it. ``name`` is its folder."""

    name: str
    fuse: Fuse
    steps: Mapping[str, Step]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recipe without faults. ``unused``: sources that no cell speaks of."""

    path: Path
    recipe: Recipe
    cells: tuple[MatrixCell, ...]
    unused: tuple[str, ...]

    @property
    def lock(self) -> Path:
        """The recipe's own, which `lcmmerge lock` writes."""
        return self.path.with_name(f"{self.path.name}.lock")


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
        MatrixCell(_name(path, varied.fuse, label), varied.fuse, varied.steps) for label, varied in recipes.items()
    )
    folders = {step.target.partition("/")[0] for step in steps().values()}
    used = {name for cell in cells for name in cell.fuse.roles.values()}
    loaded = Loaded(path, recipe, cells, tuple(name for name in recipe.sources if name not in used))
    place, reserved = ("fuse", "output"), {MANIFEST, loaded.lock.name, *folders}
    for name in (cell.name for cell in cells):
        if name in reserved or not files.is_inside(name):
            reason = "is a name that every run needs" if name in reserved else "cannot name a folder on every system"
            raise invalid(document.name, [Fault(place, f"{name!r} {reason}", document.line(place))])
    return loaded


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
            tree = _set(tree, _place_of(path, document), 0, value)
            labels.append(_label(path, value))
        varied = replace(document, tree=tree)
        faults |= dict.fromkeys([*_schema_faults(varied), *_dangling_faults(varied)])
        if (label := "-".join(labels)) in trees:
            faults[_of_matrix(document, f"two outputs would be called {label!r}")] = None
        trees[label] = tree
    if faults:
        raise invalid(document.name, list(faults))
    return trees


def _place_of(path: str, document: Document) -> Place:
    """``lambda.style`` is the λ of the term ``style``; any other path begins at the recipe's root."""
    parts = tuple(path.split("."))
    place = ("fuse", "terms", parts[1], "lambda") if len(parts) == 2 and parts[0] == "lambda" else parts
    return _written(place, document.tree)


def _written(place: Place, tree: Any) -> Place:
    """Where it stands in the tree: what is of the term ``lcm-transformer`` may be below ``lcm`` and ``transformer``."""
    names = {name: where for name, where, _ in spread(_mapping(_mapping(tree, "fuse"), "terms"))}
    if place[:2] == ("fuse", "terms") and place[2:3] and place[2] in names:
        return (*place[:2], *names[place[2]], *place[3:])
    return place


def _set(tree: Any, place: Place, depth: int, value: Any) -> Any:
    """A copy of what is at ``place[:depth]``, with another value at the place; shorthands there are written out."""
    if depth == len(place):
        return value
    match place[:depth]:
        case ("sources", _):
            tree = as_source(tree)
        case ("fuse", "terms", _):
            tree = as_term(tree)
        case ("fuse", "terms", _, _):
            tree = as_expert(tree)
    found = tree if isinstance(tree, dict) else {}
    return {**found, place[depth]: _set(found.get(place[depth]), place, depth + 1, value)}


def _assignment(text: str, document: Document) -> tuple[Place, Any]:
    path, equals, value = text.partition("=")
    if not (path and equals):
        raise invalid(f"--set {text}", [Fault((), "is not PATH=VALUE, such as lambda.style=0.7")])
    place = _place_of(path, document)
    _check_term(place, document, f"--set {text}")
    return place, parse_scalar(value)


def _check_term(place: Place, document: Document, subject: str) -> None:
    """A term's λ can only be set where there is such a term: a slip would add one."""
    match document.tree, place:
        case {"fuse": {"terms": {**terms}}}, ("fuse", "terms", str(name), *_) if name not in terms:
            raise invalid(subject, [Fault(place[:3], f"there is no such term{_meant(name, map(str, terms))}")])


def _axes(document: Document) -> list[tuple[str, list[Any]]]:
    """Empty where the matrix is malformed, which the schema then says."""
    matrix: Any = document.tree.get("matrix") if isinstance(document.tree, dict) else None
    if not isinstance(matrix, dict) or not all(isinstance(values, list) and values for values in matrix.values()):
        return []
    if not all(isinstance(value, str | int | float) for values in matrix.values() for value in values):
        return []
    for path in matrix:
        place = _place_of(path, document)
        if place[0] != "fuse":
            message = "must be `lambda.TERM`, or a path that begins with fuse."
            raise invalid(document.name, [Fault(("matrix", path), message, document.line(("matrix", path)))])
        _check_term(place, document, document.name)
    return list(matrix.items())


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


def _schema_faults(document: Document) -> Iterator[Fault]:
    """Where the tree is not as the models want it: one fault per place."""
    try:
        Recipe.model_validate(document.tree)
    except ValidationError as error:
        seen: set[tuple[Place, str]] = set()
        for item in error.errors(include_url=False):
            place, kind = _written(tuple(item["loc"]), document.tree), item["type"]
            known = place if kind in ("extra_forbidden", "missing") else _within(document.tree, place)
            if (known, kind if kind == "missing" else "") not in seen:
                seen.add((known, kind if kind == "missing" else ""))
                yield Fault(known, _message(item), document.line(known))


def _dangling_faults(document: Document) -> Iterator[Fault]:
    """Names that no source has. The tree may be malformed elsewhere."""
    sources = _mapping(document.tree, "sources")
    fuse = _mapping(document.tree, "fuse")
    keys = [key for key in ("base", "config_from", "parts_from", "like") if key in fuse]
    named: list[tuple[Place, Any]] = [(("fuse", key), fuse[key]) for key in keys]
    for name, where, term in spread(_mapping(fuse, "terms")):
        place: Place = ("fuse", "terms", *where)
        if isinstance(term, dict):
            named += [((*place, key), term[key]) for key in ("source", "tuned_from") if key in term]
            named += [(place, name)] if "source" not in term else []
    for place, name in named:
        if isinstance(name, str) and name not in sources:
            yield Fault(place, f"no source is called {name!r}{_meant(name, sources)}", document.line(place))


def _meant(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'style'?``, or nothing."""
    close = get_close_matches(word.lower(), known, 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys_at(place: Sequence[str | int]) -> tuple[str, ...]:
    """The keys that the schema allows at a place."""
    schema = Recipe.model_json_schema(by_alias=True)
    at: dict[str, Any] = schema
    for part in place:
        at = _object(schema, at)
        named: Iterable[Any] = at.get("patternProperties", {}).values()
        at = at.get("properties", {}).get(part) or next(iter(named), None) or at.get("items") or {}
    return tuple(_object(schema, at).get("properties", {}))


def _object(schema: dict[str, Any], at: dict[str, Any]) -> dict[str, Any]:
    """The object among what may stand there: references followed, shorthands and null passed over."""
    if "$ref" in at:
        return _object(schema, schema["$defs"][at["$ref"].rpartition("/")[2]])
    for choice in at.get("anyOf", ()):
        found = _object(schema, choice)
        if found.get("type") == "object":
            return found
    return at


def _message(item: Any) -> str:
    kind, value = item["type"], item.get("input")
    match kind:
        case "extra_forbidden":
            *place, word = item["loc"]
            known = _keys_at(place)
            return f"unknown key{_meant(str(word), known) or '; the keys are ' + ', '.join(known)}"
        case "missing":
            return "is missing"
        case "literal_error":
            expected = item["ctx"]["expected"]
            close = _meant(str(value), re.findall("'([^']+)'", expected))
            return f"is {value!r}, and must be {expected}{close}"
        case "string_pattern_mismatch":
            return f"{value!r} is not of the form {item['ctx']['pattern']}"
        case "value_error":
            return str(item["ctx"]["error"])
        case "too_short":
            return "is empty"
        case _ if kind in WANTED:
            return f"wants {WANTED[kind]}, not {value!r}"
        case _:
            return str(item["msg"])


def _within(tree: Any, place: Place) -> Place:
    """As much of the place as the tree has: pydantic also names the kinds of a union."""
    for depth, part in enumerate(place):
        tree = _child(tree, place[:depth])
        match tree, part:
            case {}, str() if part in tree:
                tree = tree[part]
            case [*_], int():
                tree = tree[part]
            case _:
                return place[:depth]
    return place


def _child(tree: Any, place: Place) -> Any:
    """With shorthands written out."""
    if len(place) == 2 and place[0] == "sources":
        return as_source(tree)
    if place[:2] == ("fuse", "terms") and len(place) in (3, 4):
        return as_term(tree) if len(place) == 3 else as_expert(tree)
    return tree


def _mapping(tree: Any, key: str) -> dict[str, Any]:
    value = tree.get(key) if isinstance(tree, dict) else None
    return value if isinstance(value, dict) else {}
