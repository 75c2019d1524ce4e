"""Runs a command and measures it: wall, CPU, peak memory of its process tree, and the time until its output is synced.

Linux: memory is read from /proc. This process must stay small and idle while a command runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# The tree that this file lies in is measured, whatever else is installed; nothing may go to the network.
PATHS = filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "HF_HUB_OFFLINE": "1"}
POLL_SECONDS = 0.02
READ_BYTES = 2**22


class CommandFailedError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds and bytes. ``wall``: the command alone; ``synced``: until its output is on the disk as well."""

    wall: float
    synced: float
    user: float
    system: float
    peak_rss: int
    stdout: str


class TreeMemory(threading.Thread):
    """The peak resident memory of a process and its descendants, file-backed pages that it mapped included.

    The larger of the highest sum seen over the tree and any one process's own high-water mark, which the kernel
    keeps, so that a short peak between two looks counts too.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.done = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(POLL_SECONDS):
            usages = [usage for pid in _tree(self.pid) if (usage := _memory(pid))]
            self.peak = max(self.peak, sum(now for now, _ in usages), *(high for _, high in usages), 0)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # it has ended
            continue
        for child in found:
            yield from _tree(int(child))


def _memory(pid: int) -> tuple[int, int] | None:
    """(resident now, high-water mark) in bytes; None once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in fields:
        return None
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def measure(command: Sequence[str], output: Path | None = None) -> Measurement:
    """Run to the end. CPU counts the children that it waited for. Raises CommandFailedError with its last words."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    memory = TreeMemory(process.pid)
    memory.start()
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)
    drain.start()
    stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    memory.done.set()
    memory.join()
    drain.join()
    if process.returncode:
        raise CommandFailedError(f"exit status {process.returncode}: " + " / ".join(errors[0].splitlines()[-3:]))
    if output is not None:
        if not output.exists():
            raise CommandFailedError("exit status 0, and no output")
        sync(output)
    synced = time.perf_counter() - begin
    return Measurement(wall, synced, usage.ru_utime, usage.ru_stime, memory.peak, stdout)


def sync(output: Path) -> None:
    """fsync a file, or every file of a folder."""
    for file in [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def settle(inputs: Sequence[Path], *leftovers: Path) -> None:
    """The state before every run: no earlier output, nothing left to write back, the inputs in the page cache."""
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        leftover.unlink(missing_ok=True)
    os.sync()
    buffer = bytearray(READ_BYTES)
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
