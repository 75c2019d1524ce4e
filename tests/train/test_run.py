"""Whole trainings through the API: what they leave, and what is left of those that end early."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distilling import job
from fusing import Files, load
from pico import pico
from pictures import folder_of
from safetensors.torch import save_file

from lcmmerge.archs import identify
from lcmmerge.errors import FormatError, LcmMergeError, OutputError
from lcmmerge.output import Output
from lcmmerge.tensors import open_source
from lcmmerge.train import base as bases
from lcmmerge.train.run import run

QUIET = Output(quiet=True)

# One process that loads torch, and a fork per training. Everything is committed by a rename: the N-th is never made.
KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from distilling import job
from forked import kill_at
from lcmmerge.train.run import run
from lcmmerge.output import Output

def train(asked, last=None):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    if last is not None:
        kill_at(last)
    run(asked, Output(quiet=True))
    os._exit(0)

base, data, folder = map(Path, sys.argv[2:])
asked = job(base, data, folder / "whole" / "lcm.safetensors", steps=4, settings={"checkpoint_every": 2})
asked.output.parent.mkdir()
assert train(asked) == 0
for last in (1, 2):
    broken = replace(asked, output=folder / str(last) / "lcm.safetensors")
    broken.output.parent.mkdir()
    assert train(broken, last) == signal.SIGKILL
    assert not broken.output.exists()
    assert train(replace(broken, resume=True)) == 0
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "images", 6)


@pytest.fixture(scope="module")
def base(files: Callable[[str], Files]) -> Path:
    return files("sd1").folder("fp32")


@pytest.mark.e2e
def test_killed_at_a_commit_and_resumed(base: Path, data: Path, tmp_path: Path) -> None:
    """In the second checkpoint, and between the card and the LoRA: the same bytes in the end."""
    tests = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", KILLED, tests, base, data, tmp_path], check=True, timeout=600)
    whole = tmp_path / "whole"
    for last in (1, 2):
        broken = tmp_path / str(last)
        for name in ("lcm.safetensors", "lcm.md"):
            assert (broken / name).read_bytes() == (whole / name).read_bytes(), last
        assert steps_of(broken / "lcm.training" / "log.csv") == steps_of(whole / "lcm.training" / "log.csv")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.e2e
def test_a_full_disk_keeps_the_last_checkpoint(base: Path, data: Path, tmp_path: Path) -> None:
    """The second checkpoint does not fit; when there is room, training goes on from the first."""
    asked = job(base, data, tmp_path / "lcm.safetensors", steps=2, settings={"checkpoint_every": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(Output):
        def note(self, text: str) -> None:
            if text == "step 1: saved":
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    try:
        with pytest.raises(OutputError, match=r"step-000002: cannot be written"):
            run(asked, Full())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    work = tmp_path / "lcm.training"
    assert [path.name for path in work.glob("step-*")] == ["step-000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["lcm.training"]
    again = job(base, data, asked.output, steps=2, settings={"checkpoint_every": 1}, resume=True)
    assert run(again, QUIET).step == 2
    assert [path.name for path in work.glob("step-*")] == ["step-000002"]


@pytest.mark.e2e
def test_the_best_by_validation_is_written(base: Path, data: Path, tmp_path: Path) -> None:
    """With scores at each step; the sheets are there, and a longer run goes on."""
    settings = {"validate_every": 1, "learning_rate": 1e-2}
    found = run(job(base, data, tmp_path / "style", kind="diffusion", validate=2, settings=settings), QUIET)
    assert found.best is not None
    scores = (tmp_path / "style.training" / "scores.csv").read_text().split()[1:]
    best = min(scores, key=lambda row: float(row.split(",")[1]))
    assert int(best.split(",")[0]) == found.step == found.best.step
    sheets = tmp_path / "style.training" / "sheets"
    assert sorted(path.name for path in sheets.iterdir()) == ["step-000001.png", "step-000002.png"]


@pytest.mark.e2e
def test_half_precision_learns_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    """Two precisions in one process; bfloat16 has 8 bits, and the first step's loss is right to about as many."""
    losses = {}
    for precision in ("no", "bf16"):
        run(job(base, data, tmp_path / precision, steps=1, settings={"precision": precision}), QUIET)
        losses[precision] = float((tmp_path / f"{precision}.training" / "log.csv").read_text().split(",")[5])
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)
    assert losses["bf16"] != losses["no"]
    state = load(tmp_path / "bf16.training" / "step-000001" / "trained.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.e2e
def test_a_work_folder_of_the_users_is_not_emptied(base: Path, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    asked = {"work": work, "rank": 1, "steps": 1}
    run(job(base, data, tmp_path / "lcm", **asked), QUIET)
    with pytest.raises(OutputError, match="work: holds the checkpoint of step 1"):
        run(job(base, data, tmp_path / "other", **asked), QUIET)
    run(job(base, data, tmp_path / "other", force=True, **asked), QUIET)
    assert (work / "notes.txt").read_text() == "mine"
    assert len((work / "log.csv").read_text().splitlines()) == 2
    (work / "sheets").symlink_to("/tmp")
    with pytest.raises(FormatError, match="symbolic link"):
        run(job(base, data, tmp_path / "other", resume=True, force=True, **asked), QUIET)


@pytest.mark.parametrize("name", ["log.csv", "sheets", "step-000001"])
def test_what_no_training_wrote_is_not_removed(name: str, base: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "work" / name
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    asked = job(base, data, tmp_path / "lcm", work=tmp_path / "work", rank=1, steps=1)
    if name.startswith("step-"):  # a folder, and no checkpoint
        with pytest.raises(OutputError):
            run(asked, QUIET)
    else:
        with pytest.raises(OutputError, match="no training wrote it"):
            run(asked, QUIET)
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"w": (9.0, 3.0)}, "is not a range"),
        ({"skip": 7}, "does not divide 1000 timesteps"),
        ({"resolution": 60}, "not a multiple of 8"),
        ({"alpha": float("inf")}, "--alpha inf"),
        ({"full": True, "output": Path("lcm.safetensors")}, "a whole pipeline is a folder"),
        ({"device": "cuda:7"}, "there is none here"),
        ({"validate": 6}, "6 examples, and 6 are asked for validation"),
    ],
)
def test_what_makes_no_sense(fields: dict[str, object], message: str, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LcmMergeError, match=message):
        run(job(base, data, **{"output": tmp_path / "lcm", **fields}), QUIET)
    assert not list(tmp_path.iterdir())


def test_a_whole_model_and_then_its_fine_tuning(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(job(base, data, tmp_path / "lcm", steps=1, full=True), QUIET)
    assert load(tmp_path / "lcm" / "unet")["time_embedding.cond_proj.weight"].any()
    tuned = run(job(tmp_path / "lcm", data, tmp_path / "tuned", steps=1, full=True, kind="lcf"), Output())
    assert "Warning" not in capsys.readouterr().err
    assert tuned.sampling.guidance.default == 11  # 1 + w, w in the middle of 5 to 15
    found = load(tmp_path / "tuned")
    assert found["unet.time_embedding.cond_proj.weight"].shape == (8, 256)
    assert found.keys() - {"unet.time_embedding.cond_proj.weight"} == pico("sd1").state().keys()
    with pytest.raises(LcmMergeError, match="is a latent consistency model already"):
        run(job(tmp_path / "lcm", data, tmp_path / "again"), QUIET)


def test_fine_tuning_warns_where_nothing_says_lcm(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(job(base, data, tmp_path / "tuned", steps=1, kind="lcf"), Output())
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    assert warnings == [f"Warning: {base}: nothing says that it is an LCM, and --finetune needs one"]


@pytest.mark.parametrize(
    ("names", "sampling", "scheduler", "expected"),
    [
        (("style",), None, "DDIMScheduler", False),
        (("style", "lcm"), None, "DDIMScheduler", True),
        ((), {"scheduler": "TCDScheduler"}, "DDIMScheduler", True),
        ((), None, "LCMScheduler", True),
        (None, None, "DDIMScheduler", False),
    ],
)
def test_what_says_lcm(
    names: tuple[str, ...] | None, sampling: object, scheduler: str, expected: bool, base: Path, tmp_path: Path
) -> None:
    """A merge's record of its terms or of its accelerator, or the scheduler; a record of another tool says nothing."""
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    terms = [{"term": name, "lambda": 1.0} for name in names or ()]
    recipe = {"type": "other"} if names is None else {"terms": terms, "sampling": sampling}
    for path in folder.rglob("*.safetensors"):
        save_file(load(path), path, {"sd_merge_recipe": json.dumps(recipe)})
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": scheduler}))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", scheduler]}))
    model = identify(open_source(folder))
    found = bases.load(str(folder), model, None, torch.device("cpu"), torch.float32)
    assert found.is_marked_lcm is expected


def steps_of(log: Path) -> list[list[str]]:
    """The log without the seconds."""
    return [line.split(",")[:-1] for line in log.read_text().splitlines()]
