"""A small part of the campaign of tests/bench/reliability.py: cheap commands, few runs, the same faults."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from faultcases import FAULTS
from faultworld import COMMANDS, World
from stage import Reference, Stage, reference

pytestmark = pytest.mark.e2e

CHEAP = {
    number: command
    for number, command in enumerate(COMMANDS)
    if command.name in ("inspect", "combine", "lock", "accelerators", "completion", "--help")
}
OFTEN = dict.fromkeys(("hostile pickle", "hostile safetensors", "hostile yaml"), 3)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Path], Stage]:
    world = World(tmp_path_factory.mktemp("world"))
    known: dict[int, Reference] = {}

    def stage(number: int, folder: Path) -> Stage:
        if number not in known:
            known[number] = reference(COMMANDS[number], world, tmp_path_factory.mktemp("reference") / "case")
        return Stage(COMMANDS[number], world, folder, known[number])

    return stage


@pytest.mark.parametrize("fault", FAULTS)
def test_campaign(fault: str, stages: Callable[[int, Path], Stage], tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "capset"):
        pytest.skip("limits, mounts and capabilities are Linux's")
    for number in CHEAP:
        for time in range(OFTEN.get(fault, 1)):
            seed = f"{fault}/{number}/{time}"
            verdict = FAULTS[fault](stages(number, tmp_path / f"{number}-{time}" / "case"), Random(seed))
            assert not (verdict and verdict.wrong), (COMMANDS[number].arguments, seed, verdict)
