"""Fixtures that several folders share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import torch
from forked import Child, command
from fusing import Files, fuse
from hub import Hub

from lcmmerge.cli import main

pytest_plugins = ["tiers"]
LONGEST = ("tests/test_readme.py", "recipe/test_hub.py", "search/test_selector.py")


def pytest_configure() -> None:
    """One thread for each of xdist's workers, as many as cores, and for the commands that they start.

    A shell's background job ignores Ctrl-C, and ``nohup`` a closed terminal, and so would the commands whose
    interruption is tested: what is ignored is handed on to them, a handler is not.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules of the longest tests begin, lest all but one of xdist's workers wait for them in the end."""
    items.sort(key=lambda item: not str(item.path).endswith(LONGEST))


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def assert_fault(self, code: int, words: str) -> None:
        """One line with these words, and its cure."""
        assert (self.code, self.out) == (code, "")
        first, second = self.err.splitlines()
        assert first.startswith("Error: ")
        assert second.startswith("Hint: ")
        assert words in first


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """A pico's base, LoRAs and folder, by architecture; shared, so to be left as they are."""
    root = tmp_path_factory.mktemp("picos")
    return lambda name: Files(root, name)


@pytest.fixture(scope="module")
def merge(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A style and an LCM-LoRA in a base, shared by a module's tests, so to be left as it is."""
    sd1, target = files("sd1"), tmp_path_factory.mktemp("merge") / "merged.safetensors"
    fuse(sd1.base(), target, sd1.style, sd1.lcm)
    return target


@pytest.fixture
def merged(merge: Path, tmp_path: Path) -> Path:
    """The test's own."""
    return Path(shutil.copy(merge, tmp_path))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Hub on the loopback."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``cli("fuse", base, …)``: the command line in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["lcmmerge", *map(str, arguments)])
        code = 0
        capsys.readouterr()  # what the test itself said before
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Callable[..., Child]:
    """``start("fuse", base, …, HF_HUB_OFFLINE="1")``: the command line in a process of its own."""

    def run(*arguments: object, **environment: str) -> Child:
        return Child(command, *map(str, arguments), env=os.environ | environment)

    return run


@pytest.fixture
def process() -> Callable[..., Ran]:
    """As ``start``, to its end; in an interpreter of its own, where it or torch is told something as it begins."""

    def run(*arguments: object, **environment: str) -> Ran:
        words, env = tuple(map(str, arguments)), os.environ | environment
        if any(name.startswith(("OMP_", "PYTHON")) and os.environ.get(name) != env[name] for name in environment):
            line = [sys.executable, "-m", "lcmmerge", *words]
            done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)
        else:
            done = forked.run(command, *words, env=env)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run
