"""What reaches a person or a program: plain, in the letters that its stream has; JSON that parses to the same."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.errors import LcmMergeError
from lcmmerge.output import Output, plain

ANY = st.text(st.characters(exclude_categories=()), max_size=40)  # also surrogates, of names that are not UTF-8
ESCAPES = "nice\x1b]0;TITLE\x07\x1b[31mred\x9b31m\u202e\x7f\udcff\nnext"
ENCODINGS = ("utf-8", "ascii", "latin-1", "cp437")


class Streams:
    """stdout and stderr in an encoding that may lack letters; ``shown``: what came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self.encoding, self.files = encoding, [io.BytesIO(), io.BytesIO()]
        self.streams = [io.TextIOWrapper(file, encoding, write_through=True) for file in self.files]
        for name, stream in zip(("stdout", "stderr"), self.streams, strict=True):
            monkeypatch.setattr(sys, name, stream)

    def shown(self) -> str:
        return "".join(file.getvalue().decode(self.encoding) for file in self.files)


def say_everything(text: str) -> None:
    output = Output()
    output.text(text)
    output.note(text)
    output.warn(text)
    output.table(text, (text, "number"), [(text, 1), ("short", text)], numbers=1)
    output.error(LcmMergeError(text, text, [text]))
    with output.progress(text, 10) as progress:
        progress(10)


def controls(text: str) -> set[str]:
    return {sign for sign in text if not sign.isprintable()} - {"\n"}


@given(ANY)
def test_plain_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
    if text.isprintable():
        assert plain(text) == text


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_control_and_no_exception_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, encoding)
    for text in (ESCAPES, "θ′ = θ + λ·τ ∞ é 模型 😀", "[bold]no markup[/bold] :smile:"):
        say_everything(text)
    monkeypatch.undo()
    shown = streams.shown()
    assert not controls(shown)
    assert "TITLE" in shown
    assert "[bold]no markup[/bold] :smile:" in shown


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(value=st.dictionaries(ANY, ANY | st.integers() | st.none(), max_size=3))
def test_json_parses_to_the_same(encoding: str, value: dict[str, object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        streams = Streams(patch, encoding)
        Output(as_json=True).json(value)
    assert not controls(streams.shown())
    assert json.loads(streams.shown()) == json.loads(json.dumps(value))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("line", [["--help"], ["fuse", "--help"], ["accelerators"], ["inspect", "λ"], ["fuse"]])
def test_commands_in_other_encodings(encoding: str, line: list[str], tmp_path: Path) -> None:
    environment = dict(os.environ, PYTHONIOENCODING=encoding, OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", "from lcmmerge.cli import main; main()", *line]
    ran = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, timeout=120, check=False)
    out, err = ran.stdout.decode(encoding), ran.stderr.decode(encoding)
    assert ran.returncode == {"inspect": 1, "fuse": 2}.get(line[0], 0) * (line[-1] != "--help")
    assert not controls(out + err)
    assert "Traceback" not in err


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.safetensors")
    command = [sys.executable, "-c", "from lcmmerge.cli import main; main()", "inspect", name]
    for make in (False, True):
        if make:
            (tmp_path / name).write_bytes(b"none")
        ran = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120, check=False)
        assert ran.returncode == 1
        said = ran.stderr.decode()
        assert said.count("Error: ") == 1
        assert not controls(said)


def test_without_docstrings_there_is_no_help(tmp_path: Path) -> None:
    command = [sys.executable, "-OO", "-c", "from lcmmerge.cli import main; main()", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[0].startswith("Error: Python runs with -OO")
