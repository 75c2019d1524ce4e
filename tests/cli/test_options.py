"""A malformed option is exit code 2 and one line, wherever it is found; and no number is without a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

from lcmmerge.cli.options import acceleration

FUSE = ("fuse", "zoo:digits/base", "zoo:digits/neon.safetensors", "--lcm", "zoo:digits/lcm.safetensors", "--dry-run")
DRAW = ("generate", "zoo:digits/base", "--prompt", "a three", "-o", "images")
SEARCH = (
    "search", "zoo:digits/base", "zoo:digits/neon.safetensors", "--lcm", "zoo:digits/lcm.safetensors",
    "--accelerator", "lcm", "--prompts", "prompts.txt", "-o", "study",
)  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        (*FUSE, "--lambda", "1e300", "1"),
        (*FUSE, "--lambda", "x", "1"),
        (*FUSE, "--lambda", "nan", "1"),
        (*FUSE, "--block-weights", "style", "IN00=x"),
        (*FUSE, "--block-weights", "style", "NOWHERE=1"),
        (*FUSE, "--max-shard-size", "9" * 400),
        (*DRAW, "--count", str(10**12)),
        (*DRAW, "--steps", str(10**9)),
        (*DRAW, "--size", "10000000x8"),
        (*DRAW, "--size", f"{'8' * 5000}x8"),
        (*SEARCH, "--grid", "style=0:1:0.00000001"),
        (*SEARCH, "--grid", "style=0:1:0.001", "lcm=0:1:0.001"),
        (*SEARCH, "--grid", "style=1e300"),
        (*SEARCH, "--grid", "style=1", "--objective", "beauty"),
        (*SEARCH, "--grid", "style=1", "--count", str(10**12)),
        (*SEARCH, "--grid", "style=1", "--storage", "postgresql+psycopg:me:HUNTER2@127.0.0.1/db"),
        (*SEARCH, "--grid", "style=1", "--storage", "me:HUNTER2@127.0.0.1/db"),
        ("run", "zoo-recipe.yaml", "-o", "out", "--set", "lambda"),
    ],
)
def test_malformed(
    line: tuple[str, ...], cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a three\n")
    (tmp_path / "zoo-recipe.yaml").write_text(
        "version: 1\nsources: {base: zoo:digits/base, style: zoo:digits/neon.safetensors}\n"
        "fuse: {base: base, terms: {style: 1.0}}\n"
    )
    ran = cli(*line)
    assert ran.code == 2, ran.err
    assert "HUNTER2" not in ran.err
    assert sum("Error: " in text for text in ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "strength", "found"),
    [
        ((), None, (None, "lcm", 1.0)),
        ((), 0.0, None),
        ((), 0.5, (None, "lcm", 0.5)),
        (("tcd",), None, (None, "tcd", 1.0)),
        (("hyperflux-8steps",), None, (None, "hyperflux-8steps", 0.125)),
        (("hyperflux-8steps",), 0.5, (None, "hyperflux-8steps", 0.5)),
        (("fast.safetensors",), None, ("fast.safetensors", None, 1.0)),
        (("fast.safetensors", "krea2-turbo"), None, ("fast.safetensors", "krea2-turbo", 0.8)),
        (("krea2-turbo", "fast.safetensors"), None, ("fast.safetensors", "krea2-turbo", 0.8)),
        (("to/Hyper-FLUX.1-dev-8steps-lora.safetensors",), None, (..., None, 0.125)),
        (("tcd",), 0.0, (None, "tcd", 0.0)),
    ],
)
def test_one_option_names_the_accelerator(
    given: tuple[str, ...], strength: float | None, found: tuple[object, ...] | None
) -> None:
    term = acceleration(given, strength)
    if found is None or term is None:
        assert term is found
        return
    file = term.source.reference if term.source else None
    assert (file, term.accelerator, term.strength) == (given[0] if found[0] is ... else found[0], *found[1:])
