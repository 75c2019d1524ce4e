"""``lcmmerge --help`` is a map, each command shows examples that can be typed, and all of it fits a narrow terminal."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import pytest

from lcmmerge.cli import EXAMPLES, SECTIONS
from lcmmerge.cli import cli as program

if TYPE_CHECKING:
    from conftest import Ran

HEAVY = ("torch", "numpy", "diffusers", "transformers", "peft", "optuna", "onnx", "pydantic", "rich", "PIL")
COMMANDS = sorted(program.commands)


def _examples(name: str) -> list[str]:
    return re.findall(rf"^ +(lcmmerge {name}\b.*)", program.commands[name].help or "", re.MULTILINE)


def _parse(line: str) -> None:
    """Raises click's error where the line could not be typed; no command is run. What a shell reads is left out."""
    context = program.make_context("lcmmerge", shlex.split(line.partition(" > ")[0])[1:])
    name, command, arguments = program.resolve_command(context, [*context._protected_args, *context.args])
    assert command
    command.make_context(name, arguments, parent=context)


def test_each_command_stands_in_one_section() -> None:
    listed = [str(command.name) for commands in SECTIONS.values() for command in commands]
    assert sorted(listed) == COMMANDS


def test_the_map_has_a_line_for_each_command(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, command in program.commands.items():
        assert f"  {name:<12}  {command.short_help}" in lines
    starts = [lines.index(f"{title}:") for title in SECTIONS]
    assert starts == sorted(starts)
    assert [f"  {example}" for example in EXAMPLES] == lines[lines.index("Start here:") + 1 :][: len(EXAMPLES)]


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what cannot be cut: examples, and an option's choices."""
    monkeypatch.setenv("COLUMNS", str(columns))
    program.main([name, "--help"], "lcmmerge", standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    uncut = re.compile(r" +(lcmmerge|optuna-dashboard|-)")
    assert [line for line in said if len(line) > columns and not uncut.match(line)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name: str) -> None:
    examples = _examples(name)
    assert examples
    for example in examples:
        _parse(example)


@pytest.mark.parametrize("example", EXAMPLES[:-1])
def test_the_examples_to_start_with_parse(example: str) -> None:
    _parse(example)


def test_an_example_with_a_wrong_option_would_be_found() -> None:
    with pytest.raises(click.NoSuchOption):
        _parse("lcmmerge fuse base.safetensors --lambdas 0.8 1.0")
    with pytest.raises(click.BadParameter):
        _parse("lcmmerge fuse base.safetensors --lambda 0.8 much")


@pytest.mark.parametrize("arguments", [["--help"], ["fuse", "--help"], ["completion", "bash"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = "import sys; from lcmmerge.cli import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert set(HEAVY).isdisjoint(done.stdout.splitlines()[-1].split())
