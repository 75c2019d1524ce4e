"""What surrounds every command."""

import subprocess
import sys
import time

import pytest

# The command is a stand-in: what is tested is where the signal arrives.
IN_A_DESTRUCTOR = """
import os, signal, time
from lcmmerge import cli

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

def command(**options):
    Late()
    time.sleep(30)

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.cli.main = command
cli.main()
"""


def test_ctrl_c_where_python_cannot_raise():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert time.monotonic() - began < 25  # it does not sleep on
    assert done.stderr == "Interrupted; nothing was written.\n"


AT_THE_EDGES = """
import os, signal
from lcmmerge import cli

def interrupted(*given, **options):
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
"""


@pytest.mark.parametrize("where", ["cli.open_streams = interrupted", "cli.Output.error = interrupted"])
def test_ctrl_c_before_a_command_and_while_its_error_is_told(where: str):
    done = subprocess.run(
        [sys.executable, "-c", f"{AT_THE_EDGES}{where}\ncli.main()", "inspect", "nothing.safetensors"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "Interrupted; nothing was written.\n")


def test_ctrl_c_after_a_command_changes_nothing():
    code = f"{AT_THE_EDGES}cli.main()\ninterrupted()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
