"""A study in PostgreSQL: two workers in folders of their own share its cells, and one of them is killed."""

import json
import signal
import time

import pytest
from fusing import Files
from postgres import Postgres

from lcmmerge.studies.database import Database

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


def test_two_workers_share_the_cells_and_one_is_killed(command, server, start, process, tmp_path):
    (tmp_path / "gate" / "study").mkdir(parents=True)
    gate = Database(server.url, tmp_path / "gate" / "study")

    def both_wait():
        assert one.poll() is other.poll() is None
        return server.ask("SELECT COUNT(*) FROM pg_locks WHERE NOT granted") == [(2,)]

    with start(*command("one")) as one, start(*command("other")) as other:
        for _ in ("to open the study", "to put its cells into the queue"):
            with gate.held("study study"):
                until(both_wait)
        killed = kill_in_the_middle(one, server)
        out, err = other.communicate(timeout=200)
    gate.close()
    assert other.returncode == 0, err
    states = dict(server.ask("SELECT state, COUNT(*) FROM trials GROUP BY state"))
    assert states.pop("COMPLETE") == CELLS + 2  # and the controls
    # They were drawn by the other; one more may have been taken and not signed yet.
    assert states in ({"FAIL": killed}, {"FAIL": killed + 1})
    drawn = server.ask("SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'cell'")
    assert len(drawn) == CELLS + 2
    assert len(server.ask("SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'worker'")) == 2
    report = json.loads(out)
    assert len(report["rows"]) == CELLS + 2 + 3  # and what they are compared with
    again = process(*command("one"))
    assert "Drawn from" not in again.err
    assert json.loads(again.out) == report | {"way": None}
    assert kept(tmp_path / "one") == kept(tmp_path / "other")


def kill_in_the_middle(worker, server):
    """When it draws a cell. How many it had taken, and signed, and not told of."""
    query = f"""
        SELECT COUNT(*) FROM trials JOIN trial_user_attributes USING (trial_id)
        WHERE state = 'RUNNING' AND key = 'worker' AND value_json LIKE '%-{worker.pid}-%'
    """
    while True:
        until(lambda: server.ask(query) != [(0,)])
        worker.send_signal(signal.SIGSTOP)
        time.sleep(0.2)  # what it asked the server for is done
        if (taken := server.ask(query)) != [(0,)]:
            worker.kill()
            return taken[0][0]
        worker.send_signal(signal.SIGCONT)


def kept(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
