"""The loop: it learns, it resumes bit for bit, it keeps the best, and it stops with what it has."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pico import pico, short_unet
from training import Recording, batch_of

from lcmmerge.errors import FormatError, LcmMergeError, NumericError
from lcmmerge.train.batch import Batch
from lcmmerge.train.checkpoint import Checkpoints
from lcmmerge.train.networks import FullNetworks, LoraNetworks, Networks
from lcmmerge.train.noise import Noise
from lcmmerge.train.objectives.diffusion import Diffusion
from lcmmerge.train.objectives.lcd import LatentConsistencyDistillation
from lcmmerge.train.settings import TrainingSettings
from lcmmerge.train.trainer import Trainer

QUICK = TrainingSettings(steps=4, batch_size=2, checkpoint_every=2, validate_every=0, learning_rate=1e-3)


def feed(first: int, process: int, processes: int) -> Iterator[Batch]:
    number = first
    while True:
        yield batch_of("sd1", 2, seed=number)
        number += 1


def networks(full: bool = False) -> Networks:
    unet, noise = short_unet("sd1"), Noise.of(pico("sd1").pipeline.scheduler.config)
    if full:
        return FullNetworks(unet, noise, guided=True, taught=True, mu=0.95)
    return LoraNetworks(unet, noise, rank=2, alpha=2.0, seed=0)


def trainer(folder: Path, settings: TrainingSettings = QUICK, *, full: bool = False, **others: object) -> Trainer:
    arguments = {
        "objective": LatentConsistencyDistillation(),
        "feed": feed,
        "watch": Recording(),
        "identity": {"base": "pico"},
        "accelerator": Accelerator(cpu=True),
    }
    return Trainer(networks(full), settings=settings, folder=folder, **arguments | others)


def assert_same(one: Networks, other: Networks) -> None:
    for (key, a), b in zip(one.state().items(), other.state().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.slow("three trainings")
@pytest.mark.parametrize(
    ("full", "accumulate"),
    [
        (False, 1),
        pytest.param(False, 2, marks=pytest.mark.e2e),
        pytest.param(True, 1, marks=pytest.mark.e2e),
    ],
)
def test_a_resumed_run_is_an_unbroken_run(full: bool, accumulate: int, tmp_path: Path) -> None:
    settings = replace(QUICK, accumulate=accumulate)
    unbroken = trainer(tmp_path / "unbroken", settings, full=full)
    unbroken.train()

    def interrupt(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, batch in enumerate(feed(first, process, processes)):
            if number == 3 * accumulate:
                raise OSError("the data are gone")
            yield batch

    broken = trainer(tmp_path / "broken", settings, full=full, feed=interrupt)
    with pytest.raises(OSError, match="gone"):
        broken.train()
    resumed = trainer(tmp_path / "broken", settings, full=full)
    resumed.train(resume=True)

    assert_same(unbroken.networks, resumed.networks)
    assert resumed.watch.losses == unbroken.watch.losses[2:]


def test_the_loss_falls_on_one_batch(tmp_path: Path) -> None:
    settings = replace(QUICK, steps=20, checkpoint_every=0, learning_rate=3e-3)
    fixed = batch_of("sd1", 8)
    run = trainer(tmp_path, settings, full=True, objective=Diffusion(), feed=lambda *_: iter([fixed] * 20))
    run.train()
    assert sum(run.watch.losses[-5:]) < 0.9 * sum(run.watch.losses[:5])


def test_two_micro_batches_are_one_batch(tmp_path: Path) -> None:
    """The mean of their gradients: with l2 and the same random numbers, that of the two batches side by side."""
    run = trainer(tmp_path, replace(QUICK, steps=1, accumulate=2, max_grad_norm=1e9, checkpoint_every=0))
    run.train()
    parts = trainer(tmp_path / "parts")
    losses = [
        parts.objective.loss(parts.networks, batch, parts._draw(0, part))
        for part, batch in zip(range(2), feed(0, 0, 1), strict=False)
    ]
    assert run.watch.losses == [pytest.approx(sum(losses).item() / 2, rel=1e-6)]


@pytest.mark.e2e
def test_the_best_is_kept_and_left_in_the_networks(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0, 4.0])
    seen = []

    def validate(tested: Networks) -> float:
        seen.append({key: value.clone() for key, value in tested.state().items()})
        return next(scores)

    run = trainer(tmp_path, replace(QUICK, validate_every=1, checkpoint_every=1), validate=validate)
    trained = run.train()

    assert (trained.step, trained.best.score) == (2, 1.0)
    assert Checkpoints(tmp_path).steps() == [2, 4]
    assert all(torch.equal(value, seen[1][key]) for key, value in run.networks.state().items())
    assert run.watch.scores == {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}


@pytest.mark.e2e
def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path: Path) -> None:
    long = trainer(tmp_path / "long")
    long.train()
    trainer(tmp_path / "short", replace(QUICK, steps=2)).train()
    longer = trainer(tmp_path / "short")
    longer.train(resume=True)
    assert_same(long.networks, longer.networks)


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    with pytest.raises(LcmMergeError, match="other settings") as refused:
        trainer(tmp_path, replace(QUICK, learning_rate=2e-3), identity={"base": "another"}).train(resume=True)
    assert refused.value.details == ("base: pico then, another now", "learning_rate: 0.001 then, 0.002 now")


@pytest.mark.e2e
def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    (tmp_path / "step-000004" / "optimizer.pt").write_bytes(b"PK")
    with pytest.raises(FormatError, match="step-000004: not a whole checkpoint"):
        trainer(tmp_path).train(resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def spoilt(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, batch in enumerate(feed(first, process, processes)):
            yield replace(batch, latents=batch.latents * (float("nan") if number == 3 else 1.0))

    with pytest.raises(NumericError, match="step 4: the loss is nan") as stopped:
        trainer(tmp_path, feed=spoilt).train()
    assert "step 2 is saved" in stopped.value.hint
    assert Checkpoints(tmp_path).steps() == [2]


@pytest.mark.e2e
def test_ctrl_c_saves_the_step_in_hand(tmp_path: Path) -> None:
    def interrupted(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, batch in enumerate(feed(first, process, processes)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, replace(QUICK, checkpoint_every=100), feed=interrupted).train()
    assert Checkpoints(tmp_path).steps() == [3]

    unbroken = trainer(tmp_path / "unbroken")
    unbroken.train()
    resumed = trainer(tmp_path)
    resumed.train(resume=True)
    assert_same(unbroken.networks, resumed.networks)


def test_eight_bit_states_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as where it is not installed
    with pytest.raises(LcmMergeError, match="bitsandbytes"):
        trainer(tmp_path, replace(QUICK, optimizer="adamw-8bit")).train()


def test_the_rate_warms_up_and_decays() -> None:
    settings = TrainingSettings(steps=10, warmup=3, learning_rate=1.0, decay="cosine")
    rates = [settings.rate(step) for step in range(10)]
    assert rates[:3] == pytest.approx([0.25, 0.5 * 0.9755, 0.75 * 0.9045], rel=1e-3)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.03
