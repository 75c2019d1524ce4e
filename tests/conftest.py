"""Fixtures that several folders share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from fusing import Files
from hub import Hub

from lcmmerge.cli import main


def pytest_configure() -> None:
    """One thread for each of xdist's workers, and for the commands that they start: workers are as many as cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """A pico's base, LoRAs and folder, by architecture; shared, so to be left as they are."""
    root = tmp_path_factory.mktemp("picos")
    return lambda name: Files(root, name)


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
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """``start("fuse", base, …, HF_HUB_OFFLINE="1")``: the command line in a process of its own."""

    def run(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lcmmerge", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    return run


@pytest.fixture
def process(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Ran]:
    """As ``start``, to its end."""

    def run(*arguments: object, **environment: str) -> Ran:
        with start(*arguments, **environment) as child:
            out, err = child.communicate(timeout=120)
        return Ran(child.returncode, out, err)

    return run
