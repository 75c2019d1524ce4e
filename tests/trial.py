"""One command under one fault: run in a child that is forked after the imports, and judged by what it leaves.

A fork is the command line itself but for the start of Python; signals, limits, users and terminals are the child's own.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import pty
import resource
import select
import signal
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEMORY = 12 << 30  # bytes of address space more than the parent has
PEAK = 3 << 30  # bytes; a pico's command takes a tenth
SECONDS = 60.0  # before a command counts as one that hangs
CLOSED = "closed"
KNOWN = (0, 1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Ended:
    """``code`` is negative where a signal ended it. ``peak``: bytes of memory."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a child meets. ``kill``: (signal, after so many seconds). ``columns``: on a terminal of that width.

    ``file_size``: no file may grow beyond it. ``out``: what stdout is in place of a file, or CLOSED.
    ``unprivileged``: with no capability. ``encoding``: of stdout and stderr.
    """

    environment: Mapping[str, str | None] | None = None
    kill: tuple[int, float] | None = None
    columns: int = 0
    file_size: int = 0
    unprivileged: bool = False
    out: str = ""
    encoding: str = "utf-8"


PLAIN = Circumstances()


def run(arguments: Sequence[object], folder: Path, met: Circumstances = PLAIN) -> Ended:
    """``lcmmerge ARGUMENTS`` in ``folder``."""
    said = folder.with_name(f"{folder.name}.said")
    said.mkdir(exist_ok=True)
    names = [said / "out", said / "err"]
    opened = [names[0] if met.out in ("", CLOSED) else met.out, names[1]]
    files = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666) for name in opened]
    master, slave = pty.openpty() if met.columns else (-1, -1)
    if met.columns:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, met.columns, 0, 0))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _child(arguments, folder, met, [slave, slave] if met.columns else files, writer)
    if met.columns:
        os.close(slave)
    os.close(writer)
    os.read(reader, 1)  # it is at the command
    os.close(reader)
    begun = time.monotonic()
    status, usage, hung, shown = _wait(child, met, master)
    seconds = time.monotonic() - begun
    for descriptor in files:
        os.close(descriptor)
    out, err = (name.read_text("utf-8", errors="replace") if name.exists() else "" for name in names)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, shown or out, err, seconds, usage.ru_maxrss * 1024, hung)


def _child(
    arguments: Sequence[object], folder: Path, met: Circumstances, streams: Sequence[int], writer: int
) -> None:
    code = 70
    try:
        from lcmmerge.cli import main

        os.setsid()
        if met.columns:
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
        os.dup2(streams[0] if met.columns else os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(streams[0], 1)
        os.dup2(streams[1], 2)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, buffering, met.encoding, errors, closefd=False)  # noqa: SIM115
            for number, mode, buffering, errors in (
                (0, "r", -1, "strict"), (1, "w", -1, "strict"), (2, "w", 1, "backslashreplace"),
            )
        )
        if met.out == CLOSED:
            os.close(1)
            sys.stdout = None  # as Python begins then
        for name, value in (met.environment or {}).items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        _limit(met)
        os.chdir(folder)
        sys.argv = ["lcmmerge", *map(str, arguments)]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _exit_code(main, writer)
    finally:
        os._exit(code)


def _limit(met: Circumstances) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if met.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (met.file_size, met.file_size))
    if met.unprivileged:  # capset(2), version 3: even root then reads and writes only what modes allow
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def _exit_code(main: Callable[[], None], writer: int) -> int:
    """What Python would exit with, a traceback for what nobody caught; ``writer`` is told when it begins."""
    code = 0
    try:
        os.close(writer)
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        if all(frame.f_code is not main.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as before Python answers it
            signal.raise_signal(signal.SIGINT)
        traceback.print_exc()
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if sys.stdout:
            sys.stdout.flush()
    except (OSError, ValueError):
        code = code or 120
    return code


def _wait(child: int, met: Circumstances, master: int) -> tuple[int, resource.struct_rusage, bool, str]:
    begun, killed, hung, shown = time.monotonic(), False, False, bytearray()
    while True:
        if master >= 0 and select.select([master], [], [], 0)[0]:
            with suppress(OSError):  # the child has closed the terminal
                shown += os.read(master, 65536)
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        passed = time.monotonic() - begun
        if met.kill and not killed and passed >= met.kill[1]:
            os.kill(child, met.kill[0])
            killed = True
        if passed > SECONDS:
            os.kill(child, signal.SIGKILL)
            hung = True
        time.sleep(0.001)
    if master >= 0:
        while select.select([master], [], [], 0)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:
                break
        os.close(master)
    return status, usage, hung, shown.decode("utf-8", errors="replace")


def faults(ended: Ended, codes: Sequence[int] = KNOWN) -> str:
    """What is wrong with how a command ended, "" where nothing is: the code, one line of cause, time and memory."""
    lines = ended.err.splitlines()
    causes = [line for line in lines if line.startswith("Error: ")]
    if ended.hung:
        return f"hung for {SECONDS:g} s"
    if "Traceback" in ended.err or "Traceback" in ended.out:
        return f"traceback: {lines[-1] if lines else ended.out[-200:]}"
    if "a bug of lcmmerge" in ended.err:
        return lines[-2]
    if ended.code not in codes:
        return f"exit code {ended.code}: {' / '.join(lines[-3:])}"
    if ended.peak > PEAK:
        return f"{ended.peak / 1e9:.1f} GB of memory"
    if ended.code == 130:
        return "" if lines and lines[-1].startswith("Interrupted") else f"said of Ctrl-C: {lines[-1:]}"
    if ended.code > 0 and len(causes) != 1 and ended.code != 4:
        return f"{len(causes)} lines of cause: {' / '.join(lines[-3:])}"
    if ended.code > 0 and causes and len(causes[0]) > 2000:
        return "a line of cause over 2000 characters long"
    if any("\x1b" in line or "\0" in line for line in causes):
        return "control characters in the line of cause"
    return ""


def tree(folder: Path) -> dict[str, str]:
    """What is in a folder: path → sha256 of a file, where a link leads, or what else it is. Nothing is followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[name] = "special"
        elif not any(path.iterdir()) and name != "out":
            found[name] = "empty folder"
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Paths that came, went, or are others."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
