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

from lcmmerge.errors import LcmMergeError, OutputError
from lcmmerge.studies.database import Database
from lcmmerge.studies.trials import Trials

BOUNDS = {"style": (0.0, 1.0), "lcm": (0.0, 1.0)}
CELLS = [(1.0, number / 10) for number in range(4)]
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


@pytest.fixture
def command(files, tmp_path):
    """``command(folder)``: a search of 22 cells, and their controls."""
    inputs = files("sd1")
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    given = ("search", inputs.folder("fp32"), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm",
             "--grid", "style=0.5,1.0", "lcm=0.1:1.1:0.1", "--prompts", tmp_path / "prompts.txt", "--steps", 1,
             "--count", 1, "--size", "64x64", "--guidance", 1, "--batch", 1)  # fmt: skip
    return lambda folder: (*given, "-o", folder)


def opened(url, work, inputs=None):
    work.mkdir(exist_ok=True)
    database = Database(url, work)
    return database, Trials(database, inputs or {"base": "1"}, BOUNDS)


def draw(trials, count, at_once=1):
    """Take cells, and finish them."""
    done = []
    for claims in trials.claims(lambda: at_once):
        for claim in claims:
            trials.finish(claim, [claim.strengths[1]], {"off": 1.0})
            done.append(claim.strengths)
        if len(done) >= count:
            return done
    return done


def strengths(trials):
    return sorted(cell.strengths for cell in trials.finished())


def in_state(work):
    with closing(sqlite3.connect(work / "study.db", timeout=60)) as database, suppress(sqlite3.OperationalError):
        return dict(database.execute("SELECT state, COUNT(*) FROM trials GROUP BY state").fetchall())
    return {}


def until(holds, seconds=200):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    if times == 1:
        assert "RUNNING" not in left  # it gave back what it had taken
    database, trials = opened(f"sqlite:///{work / 'study.db'}", work, study_inputs(work))
    trials.queue([])  # and where it could not, it is seen to be gone
    assert "RUNNING" not in in_state(work)
    trials.close()
    database.close()
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}.items() >= before.items()


def study_inputs(work):
    with closing(sqlite3.connect(work / "study.db", timeout=60)) as database:
        return json.loads(database.execute("SELECT value_json FROM study_user_attributes").fetchone()[0])


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
    trials.queue(CELLS)
    other = sqlite3.connect(tmp_path / "studies.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    begun = time.monotonic()
    free = threading.Timer(1, other.close)
    free.start()
    assert sorted(draw(trials, len(CELLS))) == CELLS
    assert time.monotonic() - begun > 0.9
    free.join()
    trials.close()
    database.close()


def test_a_database_that_is_gone_and_comes_back(tmp_path):
    with Postgres() as server:
        database, trials = opened(server.url, tmp_path / "study")
        trials.queue(CELLS)
        assert len(draw(trials, 2)) == 2
        ((claim,),) = (next(trials.claims(lambda: 1)),)
        server.stop()
        with pytest.raises(LcmMergeError, match="the study's database postgresql") as caught:
            trials.finish(claim, [0.5], {"off": 1.0})
        assert SECRET not in caught.value.message
        assert "the same command goes on" in caught.value.hint
        with pytest.raises(LcmMergeError, match="the study's database postgresql"):
            trials.queue(CELLS)
        trials.close()
        database.close()
        with pytest.raises(LcmMergeError, match="the study's database postgresql"):
            opened(server.url, tmp_path / "study")
        server.start()
        database, trials = opened(server.url, tmp_path / "study")
        assert len(strengths(trials)) == 2
        trials.queue(CELLS)
        assert claim.strengths in draw(trials, len(CELLS))
        assert strengths(trials) == CELLS
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


def test_what_was_taken_from_a_worker_that_looked_dead(tmp_path):
    """It may tell of its cell when another is to draw it: that counts for nothing, and stops nobody."""
    database, trials = opened(f"sqlite:///{tmp_path / 'studies.db'}", tmp_path / "study")
    trials.queue(CELLS[:1])
    ((claim,),) = (next(trials.claims(lambda: 1)),)
    database.close()  # as where its connection broke
    other, theirs = opened(f"sqlite:///{tmp_path / 'studies.db'}", tmp_path / "study")
    assert draw(theirs, 1) == CELLS[:1]
    trials.finish(claim, [0.5], {"off": 1.0})
    trials.fail(claim, "late")
    assert [(cell.strengths, cell.fault) for cell in theirs.finished()] == [(CELLS[0], "")]
    theirs.close()
    other.close()


def test_a_lock_that_cannot_be_written(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'studies.db'}", tmp_path)
    with pytest.raises(OutputError, match="cannot be written"), database.held("x" * 300):
        pass
    database.close()


@pytest.mark.parametrize(("moment", "fault"), [
    ("INSERT ON trials", "RAISE(ABORT, 'death')"),
    ("UPDATE ON trials WHEN NEW.state = 'FAIL'", "zeroblob(1 << 40)"),  # Optuna neither hides it nor tries again
])  # fmt: skip
def test_a_death_while_cells_of_the_dead_are_queued_again(moment, fault, tmp_path):
    """Before the copy, or between it and the old one's end: each cell is drawn, and counted once."""
    path = tmp_path / "studies.db"
    dead, trials = opened(f"sqlite:///{path}", tmp_path / "study")
    trials.queue(CELLS[:2], sampled=1)
    assert len(next(trials.claims(lambda: 3))) == 3
    dead.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"CREATE TRIGGER death BEFORE {moment} BEGIN SELECT {fault}; END")
    for _ in range(2):
        database, trials = opened(f"sqlite:///{path}", tmp_path / "study")
        with pytest.raises(LcmMergeError, match=r"death|too big"):
            trials.queue([])
        database.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TRIGGER death")
    database, trials = opened(f"sqlite:///{path}", tmp_path / "study")
    assert len(draw(trials, 9)) == 3
    assert {*strengths(trials)} > {*CELLS[:2]}
    trials.queue(CELLS[:2], sampled=1)
    assert draw(trials, 9) == []
    assert len(strengths(trials)) == 3
    trials.close()
    database.close()
