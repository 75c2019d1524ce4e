"""The command line: thin commands, one file each, no logic.

Exit codes: 0 done; 1 failed; 2 usage; 3 incompatible or uncovered keys; 4 a check is missed; 5 the lock does
not match; 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
from functools import partial

import click

from lcmmerge.cli.accelerators import accelerators
from lcmmerge.cli.bench import bench
from lcmmerge.cli.check import check
from lcmmerge.cli.combine import combine
from lcmmerge.cli.completion import completion
from lcmmerge.cli.describe import describe
from lcmmerge.cli.distill import distill
from lcmmerge.cli.doctor import doctor
from lcmmerge.cli.export import export
from lcmmerge.cli.extract import extract
from lcmmerge.cli.fuse import fuse
from lcmmerge.cli.generate import generate
from lcmmerge.cli.inspect import inspect
from lcmmerge.cli.lock import lock
from lcmmerge.cli.relambda import relambda
from lcmmerge.cli.run import run
from lcmmerge.cli.search import search
from lcmmerge.cli.sections import Map
from lcmmerge.cli.train_style import train_style
from lcmmerge.cli.verify import verify
from lcmmerge.errors import LcmMergeError
from lcmmerge.output import Output, open_streams, plain
from lcmmerge.refs.reference import check_endpoint
from lcmmerge.version import __version__

INTERRUPTED = 130
NEAR = 40  # letters around one that cannot be written
SOON = 0.01  # seconds
BUG = "please report it, with what -v prints in its place"


SECTIONS = {
    "Merge": (inspect, accelerators, fuse, verify),
    "Draw, and find the λs": (generate, search),
    "Train": (train_style, distill),
    "Export to ONNX and TensorRT": (export, relambda, check, bench),
    "Recipes, for CI": (lock, run),
    "LoRA files": (extract, combine),
    "This machine": (doctor, completion),
    "For contributors": (describe,),
}
EXAMPLES = (
    "lcmmerge fuse base.safetensors style.safetensors",
    'lcmmerge generate base-style-lcm.safetensors --prompt "a fox" -o images',
    "lcmmerge search base style.safetensors --prompts prompts.txt -o study",
    "lcmmerge distill base --data photos -o own-lcm.safetensors",
    "lcmmerge export base-style-lcm.safetensors -o export",
    "lcmmerge run recipe.yaml -o out",
    "lcmmerge fuse --help",
)


@click.command(
    cls=Map, sections=SECTIONS, examples=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "-V", "--version", message="lcmmerge %(version)s")
def cli() -> None:
    """Merge style and acceleration LoRAs into one standalone few-step Stable Diffusion checkpoint.

    θ′ = θ_pre + λ1·τ′ + λ2·τ_LCM
    """
    check_endpoint()


def main() -> None:
    """Run the command line; every foreseen error is one line and an exit code, never a traceback."""
    try:
        code = _run()
        _leave_signals(signal.SIG_IGN)  # it is done: what is left takes a moment
    except (KeyboardInterrupt, click.Abort) as stopped:
        _leave_signals(signal.SIG_DFL)  # the next one ends Python at once
        said = str(stopped.__cause__ or stopped)  # click makes the second of the first
        Output.last(said or "Interrupted; nothing was written.")
        code = INTERRUPTED
    if code:
        sys.exit(code)


def _run() -> int:
    """The command that was given; the exit code."""
    open_streams()
    if __doc__ is None:
        Output.error(LcmMergeError("Python runs with -OO, which takes the help out of commands", "python -O keeps it"))
        return 1
    # OpenMP's threads spin for each other by default: on cores that others use too, that is many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A job scheduler's way to say Ctrl-C, and a terminal's that is closed; `nohup` has asked not to be told of it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    running = threading.Event()
    sys.unraisablehook = partial(_raise_later, running)
    running.set()
    atexit.register(gc.freeze)  # else the last collection walks through all of torch: half a second
    try:
        cli.main(standalone_mode=False)
    except click.Abort:
        raise
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except LcmMergeError as error:
        Output.error(error)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        where = error.filename or "standard output"
        Output.error(LcmMergeError(f"{where}: {error.strerror or error}", "check the path, and that you may use it"))
        return 1
    except UnicodeEncodeError as error:
        Output.error(_unnameable(error))
        return 1
    except MemoryError:
        Output.error(LcmMergeError("out of memory", "use a machine with more, or smaller inputs"))
        return 1
    except Exception as error:
        if {"-v", "--verbose"} & {*sys.argv}:
            raise
        Output.error(LcmMergeError(f"a bug of lcmmerge: {type(error).__name__}: {error}", BUG))
        return 1
    finally:
        running.clear()
    return 0


def _leave_signals(to: signal.Handlers) -> None:
    """Answer no more of those that are answered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            signal.signal(number, to)


def _raise_later(running: threading.Event, unraisable: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a destructor or in a weak reference's callback, from which Python raises nothing: soon after it.

    By a signal that ``main`` handles alike, and that wakes the main thread where it waits.
    """

    def interrupt() -> None:
        if running.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(SOON, interrupt).start()
    else:
        sys.__unraisablehook__(unraisable)


def _show(error: click.ClickException) -> None:
    """click's own words about how a command is used, on lines of click's own: they quote what was given."""
    said = error.format_message()
    with io.StringIO() as shown:
        error.show(shown)
        Output.last(*shown.getvalue().replace(said, plain(said)).splitlines())


def _unnameable(error: UnicodeEncodeError) -> LcmMergeError:
    """Names of files are bytes, which Python keeps; what we write is UTF-8, and a system's names may be ASCII only."""
    around = error.object[max(0, error.start - NEAR) : error.end + NEAR]
    return LcmMergeError(
        f"{around}: cannot be written in {error.encoding}",
        "rename what is called so, and let the system's names be in UTF-8 (LC_ALL=C.UTF-8, or PYTHONUTF8=1)",
    )
