"""Others' native code in a process of its own: where it crashes, that is an answer, and not our end too."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from lcmmerge.errors import CrashError, LcmMergeError

BEGIN = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import lcmmerge.graphs.apart as a; a.serve()"
SAID = 200  # characters of its last words
T = TypeVar("T")


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What ``function``, of a module's own names, returns. Raises what it raises, and CrashError."""
    asked = pickle.dumps(sys.path) + pickle.dumps((function, arguments))
    done = subprocess.run([sys.executable, "-c", BEGIN], input=asked, capture_output=True)
    if done.returncode:
        raise CrashError(_ended(done.returncode, done.stderr.decode(errors="replace")))
    result, raised = pickle.loads(done.stdout)
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]


def _ended(code: int, said: str) -> str:
    last = next((f": {line.strip()[:SAID]}" for line in reversed(said.splitlines()) if line.strip()), "")
    how = f"with {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the process that was to build it ended {how}{last}"


def serve() -> None:
    """The other side: one call, whose result alone goes to stdout, whatever the code that is called prints there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who waits for us decides
    answer = os.dup(1)
    os.dup2(2, 1)
    function, arguments = pickle.load(sys.stdin.buffer)
    result: Any = None
    raised: LcmMergeError | None = None
    try:
        result = function(*arguments)
    except LcmMergeError as error:
        raised = error
    with os.fdopen(answer, "wb") as stream:
        pickle.dump((result, raised), stream)
