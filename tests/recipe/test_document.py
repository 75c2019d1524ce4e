"""YAML as recipes read it: 1.2's scalars, and nothing that a file from elsewhere could do harm with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcmmerge.errors import NotFoundError, RecipeError
from lcmmerge.recipe.document import MAX_BYTES, parse_document, parse_scalar, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1", 0.1),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1'", "1"),
        ("[0.6, 0.8]", [0.6, 0.8]),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert (found, type(found)) == (value, type(value))


def test_keys_are_text() -> None:
    assert parse_document("on: 1\n1: 2\n<<: 3\n", "r").tree == {"on": 1, "1": 2, "<<": 3}


def test_lines() -> None:
    document = parse_document("a:\n  b:\n  - 1\n  - 2\nc: 3\n", "r")
    assert document.line(("a", "b", 1)) == 4
    assert document.line(("a", "b", 1, "not there")) == 4
    assert document.line(("c",)) == 5
    assert document.line(("d",)) is None


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system [echo]", "!!python/name:os.system x", "!!set {a}", "!own x", "!!binary aGk="],
)
def test_tags_that_would_make_objects(tag: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_document(f"a: 1\nb: {tag}\n", "r.yaml")
    (line,) = caught.value.details
    assert line.startswith("line 2: b: the tag !")


def test_core_tags_are_allowed() -> None:
    assert parse_document("a: !!str 1\nb: !!float 1\nc: !!int '2'\n", "r").tree == {"a": "1", "b": 1.0, "c": 2}
    with pytest.raises(RecipeError) as caught:
        parse_document("a: !!int x\nb: !!bool maybe\n", "r")
    assert len(caught.value.details) == 2


def test_a_key_that_stands_twice() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_document("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", "r")
    assert caught.value.details == (
        "line 4: b.c: stands twice: first on line 3",
        "line 5: a: stands twice: first on line 1",
    )


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "a: " + "[" * 30 + "]" * 30, "[" * 50_000])
def test_what_expands_without_end(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_document(text, "r")


def test_anchors_that_do_not_are_fine() -> None:
    assert parse_document("a: &a {min: 1}\nb: *a\n", "r").tree == {"a": {"min": 1}, "b": {"min": 1}}


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tx", "? [a]\n: 1", "a: \x00"])
def test_what_is_no_yaml(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_document(text, "r")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(NotFoundError):
        read_document(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(RecipeError):
        read_document(path)
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(NotFoundError, match="larger than"):
        read_document(path)
    path.write_text("\ufeffa: λ", "utf-8")
    assert read_document(path).tree == {"a": "λ"}
