"""Completion, asked as shells ask: through click's classes, and in bash, zsh and fish with the script that we print.

zsh and fish are asked where they are installed.
"""

from __future__ import annotations

import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.shell_completion import get_completion_class

from lcmmerge.accelerators import ACCELERATORS, bases
from lcmmerge.cli import cli as program
from lcmmerge.draw import SAMPLERS
from lcmmerge.export.targets import targets
from lcmmerge.search.objectives import objectives

if TYPE_CHECKING:
    from conftest import Ran

SHELLS = ("bash", "zsh", "fish")
SECONDS = 0.6  # of CPU, for one completion: 0.2 on a quiet machine; torch alone takes more than one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a person who merges; the working directory."""
    for name in ("merge.yaml", "my merge.yml", "style.safetensors", "old base.ckpt", "evil;touch pwned"):
        (tmp_path / name).touch()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _values(line: str) -> list[str]:
    """A path that is left to the shell is a ``*``."""
    *words, incomplete = line.split(" ")
    complete = get_completion_class("zsh")(program, {}, "lcmmerge", "_LCMMERGE_COMPLETE")
    return ["*" if item.type in ("file", "dir") else item.value for item in complete.get_completions(words, incomplete)]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("run ", ["*"]),
        ("fuse ", ["*"]),
        ("fuse base st", ["*"]),
        ("fuse base --adapter st", ["*"]),
        ("fuse base zoo:digits/n", ["*", "zoo:digits/neon.safetensors"]),
        ("inspect zoo:digits/b", ["*", "zoo:digits/base"]),
        ("combine zoo:digits/n", ["*", "zoo:digits/neon.safetensors"]),
        ("fuse base --lcm ", ["*", *ACCELERATORS]),
        ("generate m --scheduler ", list(SAMPLERS)),
        ("generate m --accelerator ", ["*", *ACCELERATORS]),
        ("accelerators ", list(bases())),
        ("search base --objective ", list(objectives())),
        ("export m --to ", list(targets())),
        ("completion ", list(SHELLS)),
    ],
)
def test_what_is_offered(line: str, offered: list[str], folder: Path) -> None:
    assert _values(line) == offered


@pytest.mark.parametrize("line", ["run ", "fuse base --lcm hy", "search b --objective ", "accelerators s"])
def test_it_is_quick_and_loads_no_torch(line: str, folder: Path) -> None:
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    code = "import sys; sys.argv[0] = 'lcmmerge'; from lcmmerge.cli import main\ntry: main()\nfinally: " + (
        "sys.stderr.write(' '.join(sys.modules))"
    )
    words = f"lcmmerge {line}"
    asked = {"_LCMMERGE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    for _ in range(3):  # once is enough: other work warms and cools the caches
        before = spent()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | asked
        )
        if (seconds := spent() - before) < SECONDS:
            break
    assert done.stdout.strip()
    assert {"torch", "numpy", "pydantic", "rich"}.isdisjoint(done.stderr.split())
    assert seconds < SECONDS


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_printed(shell: str, cli: Callable[..., Ran]) -> None:
    said = cli("completion", shell)
    assert said.code == 0
    assert "_LCMMERGE_COMPLETE" in said.out
    assert cli("completion", "tcsh").code == 2


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command ``lcmmerge`` on the path, whatever this package was installed as."""
    place = tmp_path_factory.mktemp("bin")
    (place / "lcmmerge").write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'lcmmerge'\nfrom lcmmerge.cli import main\nmain()\n"
    )
    (place / "lcmmerge").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


def _typed(shell: list[str], setup: str, lines: Mapping[str, str]) -> list[str]:
    """What a terminal shows after each line and the tabulator key, up to what is awaited of it."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(shell[0], shell, os.environ | {"TERM": "dumb", "COLUMNS": "120", "LINES": "50"})
    try:
        os.write(terminal, f"{setup}; PS1=READ'Y> '\n".encode())
        _shown(terminal, "READY> ")
        shown = []
        for line, awaited in lines.items():
            os.write(terminal, f"{line}\t".encode())
            shown.append(_shown(terminal, awaited))
            os.write(terminal, CLEARED)
        return shown
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _shown(terminal: int, awaited: str) -> str:
    shown, end = "", time.monotonic() + 20
    while awaited not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


CLEARED = b"\x01\x0b"  # Ctrl-A, Ctrl-K
STARTS = {
    "bash": (["bash", "--norc", "--noprofile"], 'eval "$(lcmmerge completion bash)"'),
    "zsh": (["zsh", "-f"], 'autoload -U compinit; compinit -u -D; eval "$(lcmmerge completion zsh)"'),
}


@pytest.mark.usefixtures("folder", "installed")
@pytest.mark.parametrize("shell", STARTS)
def test_a_person_types_a_tabulator(shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    lines = {
        "lcmmerge run my": "run my\\ merge.yml ",  # a name with a space is quoted
        "lcmmerge fuse ev": "fuse evil\\;touch\\ pwned ",
        "lcmmerge fuse mod": "fuse models/",  # no space after a folder
        "lcmmerge fuse b --lcm tc": "--lcm tcd",
        "lcmmerge fuse b --lcm sty": "--lcm style.safetensors",
        "lcmmerge fuse zoo:digits/b": "fuse zoo:digits/base",
        "lcmmerge dis": "lcmmerge distill",
    }
    for shown, becomes in zip(_typed(*STARTS[shell], lines), lines.values(), strict=True):
        assert becomes in shown


@pytest.mark.usefixtures("folder", "installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lcmmerge run mer", ["merge.yaml"]),
        ("lcmmerge fuse zoo:digits/n", ["zoo:digits/neon.safetensors"]),
        ("lcmmerge completion ", list(SHELLS)),
    ],
)
def test_fish_is_asked(line: str, offered: list[str]) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    code = f"lcmmerge completion fish | source; complete -C '{line}'"
    done = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(offered)
