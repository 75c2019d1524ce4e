"""What surrounds every command."""

import subprocess
import sys
import time

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
