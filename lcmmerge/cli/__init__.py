"""The command line: thin commands, one file each, no logic.

Exit codes: 0 done; 1 failed; 2 usage; 3 incompatible or uncovered keys; 4 a check is missed; 5 the lock does
not match; 130 interrupted.
"""

from __future__ import annotations

import signal
import sys

import click

from lcmmerge.cli.accelerators import accelerators
from lcmmerge.cli.bench import bench
from lcmmerge.cli.check import check
from lcmmerge.cli.combine import combine
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
from lcmmerge.cli.train_style import train_style
from lcmmerge.cli.verify import verify
from lcmmerge.errors import LcmMergeError
from lcmmerge.output import Output
from lcmmerge.version import __version__

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="lcmmerge %(version)s")
def cli() -> None:
    """Merge style and acceleration LoRAs into one standalone few-step Stable Diffusion checkpoint.

    θ′ = θ_pre + λ1·τ′ + λ2·τ_LCM
    """


for command in (
    *(run, lock, fuse, generate, search, distill, train_style),
    *(export, relambda, check, bench),
    *(inspect, extract, combine, verify, accelerators, doctor),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every foreseen error is one line and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's way to say Ctrl-C
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as stopped:
        said = str(stopped.__cause__ or stopped)  # click makes the second of the first
        sys.stderr.write(f"{said or 'Interrupted; nothing was written.'}\n")
        sys.exit(INTERRUPTED)
    except LcmMergeError as error:
        Output.error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        Output.error(LcmMergeError(f"{error.filename}: {error.strerror}", "check the path, and that you may use it"))
        sys.exit(1)
