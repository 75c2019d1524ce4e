"""Commands in processes of their own that begin at once: forked from one that has imported torch and the like.

lcmmerge itself is imported by each, and so is what reads its environment as it is imported, as huggingface_hub does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import Any, Self

LIBRARIES = ["torch._dynamo", "torch.distributed.fsdp", "scipy.stats", "PIL.Image", "pydantic", "sqlalchemy.orm"]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_context = get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES)


class Child:
    """A call of ``function`` in a process, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._said = [NamedTemporaryFile("r", encoding="utf-8") for _ in ("stdout", "stderr")]  # noqa: SIM115
        given = (function, arguments, cwd or Path.cwd(), dict(os.environ if env is None else env))
        self._process = _context.Process(target=_begin, args=(*given, [file.name for file in self._said]))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a child", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, when it has ended."""
        self.wait(timeout)
        out, err = (file.read() for file in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.wait()


def _begin(
    function: Callable[..., object],
    arguments: Sequence[object],
    cwd: Path,
    env: Mapping[str, str],
    said: Sequence[str],
) -> None:
    if sys.platform == "linux":  # ends with the forkserver, and that with the tests, however these end
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(forkserver._forkserver._forkserver_alive_fd)  # which would keep the forkserver waiting for us
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, name in zip((sys.stdout, sys.stderr), said, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), stream.fileno())
    function(*arguments)


def command(*arguments: str) -> None:
    """``lcmmerge …``."""
    from lcmmerge.cli import main

    sys.argv = ["lcmmerge", *arguments]
    main()


def commands(*lines: Sequence[str]) -> None:
    """Several, one after another; the first that fails is the last."""
    from lcmmerge.cli import cli

    for line in lines:
        cli.main(list(line), standalone_mode=False)


def run(function: Callable[..., object], *arguments: object, **where: Any) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` with what it printed; ``where``: ``cwd`` and ``env``."""
    with Child(function, *arguments, **where) as child:
        out, err = child.communicate()
    return subprocess.CompletedProcess([], child.returncode, out, err)


def kill_at(rename: int) -> None:
    """SIGKILL in place of the rename of this number, from 0: whatever is committed is committed by one."""
    left = rename

    def hook(event: str, arguments: object) -> None:
        nonlocal left
        if event == "os.rename":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_at_each_rename(function: Callable[..., object], calls: Sequence[Sequence[object]]) -> None:
    """The N-th call is killed at its N-th rename; the last is the first that comes to its end, and there is one."""
    for number, arguments in enumerate(calls):
        child = os.fork()
        if not child:
            kill_at(number)
            function(*arguments)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise AssertionError("more renames than calls")
