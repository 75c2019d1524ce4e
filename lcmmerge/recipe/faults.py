"""What is wrong with a recipe, all at once: each fault with its place, its line, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from lcmmerge.recipe.document import Document, Fault, Place
from lcmmerge.recipe.schema import Recipe, as_source, as_term

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


def schema_faults(document: Document) -> Iterator[Fault]:
    """Where the tree is not as the models want it: one fault per place."""
    try:
        Recipe.model_validate(document.tree)
    except ValidationError as error:
        seen: set[tuple[Place, str]] = set()
        for item in error.errors(include_url=False):
            place, kind = tuple(item["loc"]), item["type"]
            known = place if kind in ("extra_forbidden", "missing") else _within(document.tree, place)
            if (known, kind if kind == "missing" else "") not in seen:
                seen.add((known, kind if kind == "missing" else ""))
                yield Fault(known, _message(item, known), document.line(known))


def dangling_faults(document: Document) -> Iterator[Fault]:
    """Names that no source has. The tree may be malformed elsewhere."""
    sources = _mapping(document.tree, "sources")
    fuse = _mapping(document.tree, "fuse")
    named: list[tuple[Place, Any]] = [(("fuse", key), fuse[key]) for key in ("base", "config_from") if key in fuse]
    for name, given in _mapping(fuse, "terms").items():
        term, place = as_term(given), ("fuse", "terms", name)
        if isinstance(term, dict):
            named += [((*place, key), term[key]) for key in ("source", "tuned_from") if key in term]
            named += [(place, name)] if "source" not in term else []
    for where, name in named:
        if isinstance(name, str) and name not in sources:
            yield Fault(where, f"no source is called {name!r}{meant(name, sources)}", document.line(where))


def used_sources(tree: Any) -> set[str]:
    """The names that a well-formed tree's fuse speaks of."""
    fuse = tree["fuse"]
    terms = {name: as_term(term) for name, term in fuse["terms"].items()}
    named = [fuse["base"], fuse.get("config_from"), *(term.get("tuned_from") for term in terms.values())]
    return {name for name in (*named, *(term.get("source") or name for name, term in terms.items())) if name}


def meant(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'style'?``, or nothing."""
    close = get_close_matches(word.lower(), known, 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def keys_at(place: Place) -> tuple[str, ...]:
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


def _message(item: Any, place: Place) -> str:
    kind, value = item["type"], item.get("input")
    match kind:
        case "extra_forbidden":
            known = keys_at(place[:-1])
            word = str(place[-1])
            return f"unknown key{meant(word, known) or '; the keys are ' + ', '.join(known)}"
        case "missing":
            return "is missing"
        case "literal_error":
            expected = item["ctx"]["expected"]
            close = meant(str(value), re.findall("'([^']+)'", expected))
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
    return as_term(tree) if len(place) == 3 and place[:2] == ("fuse", "terms") else tree


def _mapping(tree: Any, key: str) -> dict[str, Any]:
    value = tree.get(key) if isinstance(tree, dict) else None
    return value if isinstance(value, dict) else {}
