"""What may befall a study: nothing recorded is lost, the cause is one line, and the same command goes on."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import pytest
from postgres import SECRET, Postgres

from lcmmerge.errors import LcmMergeError
from lcmmerge.search import database as module
from lcmmerge.search.database import Database
from lcmmerge.search.order import Cell
from lcmmerge.search.trials import Trials, Wanted, _is_gone, _machine

BOUNDS = {"style": (0.0, 1.0), "lcm": (0.0, 1.0)}
CELLS = [Cell((1.0, number / 10)) for number in range(4)]
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
# In a file system of its own: the command is stopped when it has drawn eight, the rest of the disk is filled, and the
# command goes on; then the disk is emptied, and the command is given again.
FULL = """
mount -t tmpfs -o size=4m none disk
"$@" > said 2> full & until [ "$(ls disk/study/latents 2>/dev/null | wc -l)" -gt 8 ]; do sleep 0.1; done
kill -STOP $!; cat /dev/zero > disk/filler; kill -CONT $!; wait $!; echo $?
ls disk/study/latents > before; rm disk/filler
"$@" > said 2> enough; echo $?
ls disk/study/latents > after; cp disk/study/study.json .
"""
# Takes a cell, and is killed while it draws it.
KILLED = """
import os, signal, sys
from pathlib import Path
from lcmmerge.search.database import Database
from lcmmerge.search.order import Cell
from lcmmerge.search.trials import Trials, Wanted
trials = Trials(Database(sys.argv[1], Path(sys.argv[2])), {"base": "1"}, {"style": (0.0, 1.0), "lcm": (0.0, 1.0)})
next(trials.claims([Wanted(Cell((1.0, 0.0)), 0)], lambda: 1))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def command(files, tmp_path):
    """``command(folder)``: a search of 22 cells, and their controls."""
    inputs = files("sd1")
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    given = ("search", inputs.folder("fp32"), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm",
             "--grid", "style=0.5,1.0", "lcm=0.1:1.1:0.1", "--prompts", tmp_path / "prompts.txt", "--steps", 1,
             "--count", 1, "--size", "64x64", "--guidance", 1, "--batch", 1)  # fmt: skip
    return lambda folder: (*given, "-o", folder)


def opened(url, work, inputs=None, **more):
    work.mkdir(exist_ok=True)
    database = Database(url, work)
    return database, Trials(database, inputs or {"base": "1"}, BOUNDS, **more)


@pytest.fixture
def soon(monkeypatch):
    """The dead are seen soon."""
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    monkeypatch.setattr(module, "GRACE", 1)


def wanted(cells, sampled=0):
    return [Wanted(cell, 0) for cell in [*cells, *range(sampled)]]


def draw(trials, count, cells=CELLS, sampled=0):
    """Take cells, and finish them."""
    done = []
    for claims in trials.claims(wanted(cells, sampled), lambda: 1):
        for claim in claims:
            trials.finish(claim, [claim.cell.lambdas[1]], {"off": 1.0})
            done.append(claim.cell)
        if len(done) >= count:
            return done
    return done


def finished(trials):
    return sorted(done.cell for done in trials.finished())


def in_state(work):
    with closing(sqlite3.connect(work / "study.db", timeout=60)) as database, suppress(sqlite3.OperationalError):
        return dict(database.execute("SELECT state, COUNT(*) FROM trials GROUP BY state").fetchall())
    return {}


def until(holds, seconds=200):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(times, command, start, tmp_path):
    work = tmp_path / "study"
    with start(*command(work)) as child:
        until(lambda: (work / "study.db").exists() and in_state(work).get("COMPLETE", 0) > 2)
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
        done = in_state(work)["COMPLETE"]
        for _ in range(times):
            child.send_signal(signal.SIGINT)
            time.sleep(0.02)
        out, err = child.communicate(timeout=100)
    assert (child.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("Interrupted; what is drawn is kept in ")
    assert "Traceback" not in err
    left = in_state(work)
    assert left["COMPLETE"] >= done
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}.items() >= before.items()


@pytest.mark.e2e
def test_a_full_disk(command, tmp_path):
    (tmp_path / "disk").mkdir()
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "none", tmp_path / "disk"]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system")
    line = [*NAMESPACE, "sh", "-c", FULL, "sh", sys.executable, "-m", "lcmmerge", *command(tmp_path / "disk" / "study")]
    ended = subprocess.run([*map(str, line)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    full, enough = ((tmp_path / name).read_text() for name in ("full", "enough"))
    assert ended.stdout.split() == ["1", "0"], full + enough
    error, hint = (line for line in full.splitlines() if line.startswith(("Error: ", "Hint: ")))
    assert "disk is full" in error or "No space left on device" in error
    assert hint
    assert "Traceback" not in full
    before, after = (set((tmp_path / name).read_text().split()) for name in ("before", "after"))
    assert len(before) > 8
    assert before < after
    assert len(json.loads((tmp_path / "study.json").read_text())["rows"]) == 22 + 2 + 3


@pytest.mark.e2e
def test_a_cell_that_fails_is_shown(command, cli, tmp_path):
    arguments = [*map(str, command(tmp_path / "study"))]
    arguments[arguments.index("lcm=0.1:1.1:0.1")] = "lcm=1.0,1e38"
    done = cli(*arguments)
    assert done.code == 0, done.err
    assert sum("failed" in line for line in done.out.splitlines()) == 2
    failed = [line for line in (tmp_path / "study" / "trials.csv").read_text().splitlines() if "e+38" in line]
    assert len(failed) == 2
    assert all(line.rpartition(",")[2] for line in failed)  # why


def test_a_database_that_stays_locked(tmp_path):
    with closing(sqlite3.connect(tmp_path / "studies.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LcmMergeError, match="database is locked") as caught:
            opened(f"sqlite:///{tmp_path / 'studies.db'}?timeout=0.2", tmp_path / "study")
    assert "check --storage" in caught.value.hint


def test_a_database_that_is_locked_for_a_while(tmp_path):
    database, trials = opened(f"sqlite:///{tmp_path / 'studies.db'}", tmp_path / "study")
    assert draw(trials, 1) == CELLS[:1]
    other = sqlite3.connect(tmp_path / "studies.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    begun = time.monotonic()
    free = threading.Timer(1, other.close)
    free.start()
    assert sorted(draw(trials, len(CELLS))) == CELLS[1:]
    assert time.monotonic() - begun > 0.9
    free.join()
    trials.close()
    database.close()


@pytest.mark.e2e
@pytest.mark.usefixtures("soon")
def test_a_database_that_is_gone_and_comes_back(tmp_path):
    with Postgres() as server:
        database, trials = opened(server.url, tmp_path / "study")
        assert len(draw(trials, 2)) == 2
        ((claim,),) = (next(trials.claims(wanted(CELLS), lambda: 1)),)
        server.stop()
        with pytest.raises(LcmMergeError, match="the study's database postgresql") as caught:
            trials.finish(claim, [0.5], {"off": 1.0})
        assert SECRET not in caught.value.message
        assert "the same command goes on" in caught.value.hint
        with pytest.raises(LcmMergeError, match="the study's database postgresql"):
            draw(trials, 1)
        trials.close()
        database.close()
        with pytest.raises(LcmMergeError, match="the study's database postgresql"):
            opened(server.url, tmp_path / "study")
        server.start()
        database, trials = opened(server.url, tmp_path / "study")
        assert len(finished(trials)) == 2
        assert claim.cell in draw(trials, len(CELLS))
        assert finished(trials) == CELLS
        trials.close()
        database.close()


def test_a_study_of_other_inputs(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    database, trials = opened(url, tmp_path / "study")
    trials.close()
    database.close()
    with pytest.raises(LcmMergeError, match="begun with another base") as caught:
        opened(url, tmp_path / "study", {"base": "2"})
    assert caught.value.details == ("base: 1, now 2",)


def left_by_the_dead(url, work):
    """A cell that was claimed, and whose heart beats no more."""
    database, trials = opened(url, work)
    ((claim,),) = (next(trials.claims(wanted(CELLS[:1]), lambda: 1)),)
    trials._over.set()
    return database, trials, claim


@pytest.mark.usefixtures("soon")
def test_what_was_taken_from_a_worker_that_looked_dead(tmp_path):
    """It may tell of its cell when another has drawn it: that counts for nothing, and stops nobody."""
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    database, trials, claim = left_by_the_dead(url, tmp_path / "study")
    other, theirs = opened(url, tmp_path / "study")
    assert draw(theirs, 1, CELLS[:1]) == CELLS[:1]
    trials.finish(claim, [0.5], {"off": 1.0})
    ((late,),) = (next(trials.claims(wanted(CELLS[1:2]), lambda: 1)),)
    trials.fail(late, "it is NaN")
    assert [(done.cell, done.fault) for done in theirs.finished()] == [(CELLS[0], ""), (CELLS[1], "it is NaN")]
    for each in (theirs, other, trials, database):
        each.close()


@pytest.mark.e2e
@pytest.mark.usefixtures("soon")
def test_a_worker_that_lives_keeps_its_cell(tmp_path):
    """However long it draws."""
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    database, trials = opened(url, tmp_path / "study")
    ((claim,),) = (next(trials.claims(wanted(CELLS[:1]), lambda: 1)),)
    other, theirs = opened(url, tmp_path / "study")
    done = threading.Timer(4, trials.finish, (claim, [0.5], {}))
    done.start()
    assert draw(theirs, 1, CELLS[:1]) == []  # it waits
    assert finished(theirs) == CELLS[:1]
    for each in (theirs, other, trials, database):
        each.close()


@pytest.mark.usefixtures("soon")
def test_a_death_before_the_first_heartbeat(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    database, trials = opened(url, tmp_path / "study")
    trials._awaited(wanted(CELLS[:2]))
    trials._study.ask()
    assert draw(trials, 2, CELLS[:2]) == [CELLS[1], CELLS[0]]
    assert draw(trials, 2, CELLS[:2]) == []
    trials.close()
    database.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_process_that_is_gone_is_not_waited_for(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    (tmp_path / "study").mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, url, tmp_path / "study"])
    assert killed.returncode == -signal.SIGKILL
    database, trials = opened(url, tmp_path / "study")
    begun = time.monotonic()
    assert draw(trials, 1, CELLS[:1]) == CELLS[:1]
    assert time.monotonic() - begun < module.GRACE / 3
    trials.close()
    database.close()


@pytest.mark.parametrize("worker", ["elsewhere:1", "", ":", f"{_machine()}:", f"{_machine()}:{10**30}", 7, [1]])
def test_a_worker_that_may_live(worker):
    assert not _is_gone(worker)


def test_who_waits_for_others_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lcmmerge.search.trials.POLL", 0.01)
    url, said = f"sqlite:///{tmp_path / 'studies.db'}", []
    database, trials = opened(url, tmp_path / "study")
    ((claim,),) = (next(trials.claims(wanted(CELLS[:1]), lambda: 1)),)
    other, theirs = opened(url, tmp_path / "study", say=said.append)
    done = threading.Timer(1, trials.finish, (claim, [0.5], {}))
    done.start()
    assert draw(theirs, 1, CELLS[:1]) == []
    (line,) = said
    assert line.startswith("Waiting for cells that other workers draw; ")
    for each in (theirs, other, trials, database):
        each.close()


def test_a_cell_that_two_queued_at_the_same_time_is_drawn_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    database, trials = opened(url, tmp_path / "study")
    for one in wanted(CELLS[:1], sampled=1) * 2:
        trials._study.enqueue_trial({}, one.as_dict())
    assert len(draw(trials, 9, CELLS[:1], sampled=1)) == len(trials.finished()) == 2
    trials.close()
    database.close()


def test_a_death_while_cells_are_queued(tmp_path):
    path = tmp_path / "studies.db"
    database, trials = opened(f"sqlite:///{path}", tmp_path / "study")
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TRIGGER death BEFORE INSERT ON trials BEGIN SELECT RAISE(ABORT, 'death'); END")
    with pytest.raises(LcmMergeError, match="death"):
        draw(trials, 9)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TRIGGER death")
    assert draw(trials, 9) == CELLS
    trials.close()
    database.close()
