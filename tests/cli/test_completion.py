"""Completion, asked as shells ask: through click's classes, and in bash, zsh and fish with the script that we print.

zsh and fish are asked where they are installed.
"""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.shell_completion import CompletionItem, get_completion_class

from lcmmerge.accelerators import ACCELERATORS
from lcmmerge.cli import candidates
from lcmmerge.cli import cli as program
from lcmmerge.graphs.targets import targets
from lcmmerge.sample import SAMPLERS
from lcmmerge.studies.objectives import objectives

if TYPE_CHECKING:
    from conftest import Ran

SHELLS = ("bash", "zsh", "fish")
BREAKS = " \t\n\"'><=;|&(:"  # bash's own COMP_WORDBREAKS
SECONDS = 0.6  # of CPU, for one completion: 0.2 on a quiet machine; torch alone takes more than one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a person who merges; the working directory."""
    for name in ("merge.yaml", "my merge.yml", "style.safetensors", "old base.ckpt", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "detail.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _items(words: list[str], incomplete: str) -> list[CompletionItem[str]]:
    complete = get_completion_class("zsh")
    return complete(program, {}, "lcmmerge", "_LCMMERGE_COMPLETE").get_completions(words, incomplete)


def _values(line: str) -> list[str]:
    *words, incomplete = line.split(" ")
    return [item.value for item in _items(words, incomplete)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run ", ["merge.yaml", "models/", "my merge.yml"]),
        ("run .", [".hidden.yaml"]),
        ("lock me", ["merge.yaml"]),
        ("fuse ", ["models/", "old base.ckpt", "style.safetensors"]),
        ("fuse base models/", ["models/detail.safetensors"]),
        ("fuse nowhere/", []),
        ("fuse base --lambda ", ["1.0", "0.8", "0.6", "1.2"]),
        ("fuse base --lambda 0.8 ", ["1.0", "0.8", "0.0"]),
        ("fuse base --adapter st", ["style.safetensors"]),
        ("fuse base --adapter a.safetensors ", ["1.0", "0.8", "0.5"]),
        ("fuse base --adapter models/detail.safetensors 1 --block-weights ", ["style", "lcm", "detail"]),
        ("combine ", ["models/", "old base.ckpt", "style.safetensors"]),
        ("combine style.safetensors ", ["1.0", "0.8", "0.5"]),
        ("search base style --grid ", ["style=", "lcm="]),
        ("search base style --grid lcm=", ["lcm=0.6:1.2:0.2", "lcm=0.8,1.0"]),
        ("search base style --grid style=1 lc", ["lcm="]),
        ("generate m --scheduler ", list(SAMPLERS)),
        ("generate m --accelerator ", list(ACCELERATORS)),
        ("search base --objective ", list(objectives())),
        ("export m --to ", list(targets())),
        ("completion ", list(SHELLS)),
    ],
)
def test_what_is_offered(line: str, found: list[str], folder: Path) -> None:
    assert _values(line) == found


def test_lcm_takes_a_name_or_a_file(folder: Path) -> None:
    offered = _values("fuse base --lcm ")
    assert {*ACCELERATORS, "style.safetensors", "old base.ckpt", "models/"} == set(offered)


def test_a_published_pair_says_whose_it_is() -> None:
    helps = {item.value: item.help for item in _items(["fuse", "base", "--lambda"], "")}
    assert "LCM-LoRA report" in str(helps["0.8"])


def test_names_are_listed_as_the_registries_hold_them() -> None:
    assert [name.replace("_", "-") for name in candidates.registered("studies.objectives", "OBJECTIVE")] == list(
        objectives()
    )
    assert candidates.registered("graphs.targets", "TARGET") == list(targets())


def test_the_table_has_no_idle_line() -> None:
    names = {name for command in program.commands.values() for param in command.params for name in param.opts}
    assert candidates.COMPLETERS.keys() <= names


def _ask(line: str, **others: str) -> subprocess.CompletedProcess[str]:
    """As bash's script does."""
    asked = {"_LCMMERGE_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_WORDBREAKS": BREAKS}
    code = "import sys; sys.argv[0] = 'lcmmerge'; from lcmmerge.cli import main\ntry: main()\nfinally: " + (
        "sys.stderr.write(' '.join(sys.modules))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | asked | others
    )


@pytest.mark.parametrize("line", ["run ", "fuse base --lcm hy", "search b --objective ", "accelerators s"])
def test_it_is_quick_and_loads_no_torch(line: str, folder: Path) -> None:
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(3):  # the least of them: other work warms and cools the caches
        before = spent()
        done = _ask(f"lcmmerge {line}")
        seconds.append(spent() - before)
    assert done.stdout.strip()
    assert {"torch", "numpy", "pydantic", "rich"}.isdisjoint(done.stderr.split())
    assert min(seconds) < SECONDS


def test_bash_gets_back_what_is_behind_its_cut() -> None:
    assert "plain,1.2:0.2" in _ask("lcmmerge search b s --grid style=0.4:").stdout.split()
    whole = _ask("lcmmerge search b s --grid style=0.4:", COMP_WORDBREAKS=" ").stdout
    assert "plain,style=0.4:1.2:0.2" in whole.split()


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


def _typed(shell: list[str], setup: str, line: str, awaited: str) -> str:
    """What a terminal shows after ``line`` and the tabulator key, up to ``awaited``."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(shell[0], shell, os.environ | {"TERM": "dumb", "COLUMNS": "120", "LINES": "50"})
    try:
        os.write(terminal, f"{setup}; PS1=READ'Y> '\n".encode())
        _shown(terminal, "READY> ")
        os.write(terminal, f"{line}\t".encode())
        return _shown(terminal, awaited)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _shown(terminal: int, awaited: str) -> str:
    shown, end = "", time.monotonic() + 20
    while awaited not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


STARTS = {
    "bash": (["bash", "--norc", "--noprofile"], 'eval "$(lcmmerge completion bash)"'),
    "zsh": (["zsh", "-f"], 'autoload -U compinit; compinit -u -D; eval "$(lcmmerge completion zsh)"'),
}


@pytest.mark.usefixtures("folder", "installed")
@pytest.mark.parametrize("shell", STARTS)
@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("lcmmerge run my", "run my\\ merge.yml "),  # a name with a space is quoted
        ("lcmmerge fuse mod", "fuse models/"),  # no space after a folder
        ("lcmmerge search b s --grid sty", "--grid style="),  # nor after an open word
        ("lcmmerge search b s --grid lcm=0.8", "--grid lcm=0.8,1.0"),
        ("lcmmerge fuse b --lcm tc", "--lcm tcd"),
        ("lcmmerge fuse b --lambda 0.8 1", "--lambda 0.8 1.0"),
        ("lcmmerge dis", "lcmmerge distill"),
    ],
)
def test_a_person_types_a_tabulator(shell: str, line: str, becomes: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    assert becomes in _typed(*STARTS[shell], line, becomes)


@pytest.mark.usefixtures("folder", "installed")
def test_fish_is_asked() -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    asked = {
        "lcmmerge run ": ["merge.yaml", "models/", "my merge.yml"],
        "lcmmerge fuse b --lambda 0.8 ": ["1.0\tas it was trained", "0.8\tweaker", "0.0\tnone, for comparison"],
        "lcmmerge search b s --grid lcm=": ["lcm=0.6:1.2:0.2", "lcm=0.8,1.0"],
        "lcmmerge completion ": list(SHELLS),
    }
    for line, found in asked.items():
        code = f"lcmmerge completion fish | source; complete -C {json.dumps(line)}"
        done = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == found, line
