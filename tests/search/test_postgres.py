"""A study in PostgreSQL: two workers in folders of their own share its cells, and one of them is killed."""

import json
import signal
import time

import pytest
from forked import Child
from fusing import Files
from postgres import Postgres
from searching import impatiently

pytestmark = pytest.mark.e2e

CELLS = 8  # four λs for the accelerator, and for the style two


@pytest.fixture(scope="module")
def server():
    with Postgres() as server:
        yield server


@pytest.fixture
def command(files, server, tmp_path):
    """``command(folder)``: what a worker with that folder is started with."""
    inputs: Files = files("sd1")
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    given = ("search", inputs.folder("fp32"), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm",
             "--grid", "style=0.5,1.0", "lcm=0.4:1.0:0.2", "--prompts", tmp_path / "prompts.txt", "--steps", 1,
             "--count", 1, "--size", "64x64", "--guidance", 1, "--storage", server.url, "--json")  # fmt: skip
    return lambda folder: (*given, "-o", tmp_path / folder / "study")


def until(holds, seconds=200):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_two_workers_share_the_cells_and_one_is_killed(command, server, process, tmp_path):
    """The other is held until the first draws cells."""
    words = [[*map(str, command(folder))] for folder in ("one", "other")]
    with Child(impatiently, *words[0]) as one, Child(impatiently, *words[1]) as other:
        other.send_signal(signal.SIGSTOP)
        until(lambda: dict(states(server)).get("COMPLETE", 0) > 1)
        kill_in_the_middle(one, server)
        other.send_signal(signal.SIGCONT)
        out, err = other.communicate(timeout=200)
    assert other.returncode == 0, err
    assert dict(states(server)) == {"COMPLETE": CELLS + 2, "FAIL": 1}  # and the controls; the other drew it again
    drawn = server.ask("SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'cell'")
    assert len(drawn) == CELLS + 2
    assert len(server.ask("SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'worker'")) == 2
    report = json.loads(out)
    assert len(report["rows"]) == CELLS + 2 + 3  # and what they are compared with
    again = process(*command("one"))
    assert json.loads(again.out) == report
    assert kept(tmp_path / "one") == kept(tmp_path / "other")


def states(server):
    """Of trials; none where the tables are not there yet."""
    there = server.ask("SELECT 1 FROM pg_tables WHERE tablename = 'trials'")
    return server.ask("SELECT state, COUNT(*) FROM trials GROUP BY state") if there else []


def kill_in_the_middle(worker, server):
    """When it draws a cell, and has said so."""
    query = """
        SELECT COUNT(*) FROM trials JOIN trial_user_attributes USING (trial_id)
        WHERE state = 'RUNNING' AND key = 'worker'
    """
    while True:
        until(lambda: server.ask(query) == [(1,)])
        worker.send_signal(signal.SIGSTOP)
        time.sleep(0.2)  # what it asked the server for is done
        if server.ask(query) == [(1,)]:
            worker.kill()
            return
        worker.send_signal(signal.SIGCONT)


def kept(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
