"""Two tiers of tests: the default one, whose tests are short, and ``e2e``; and no process outlives either."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import settings

SECONDS = 10  # 5 on a quiet machine: those of CI are up to twice as slow
HELPERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")  # Python's own, which end with us

settings.register_profile("few", max_examples=3, deadline=None)
settings.register_profile("many", max_examples=30, deadline=None)
settings.load_profile("many" if os.environ.get("CI") else "few")


def of_each(architectures: Iterable[str]) -> list[Any]:
    """To be parameters: SD 1 in the default tier, the others in ``e2e``, where it is the oracle that takes long."""
    return [name if name == "sd1" else pytest.param(name, marks=pytest.mark.e2e) for name in architectures]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """In CI, a test of the default tier that takes more than ``SECONDS`` fails, unless it is marked with a reason.

    A law, of which CI tries many examples, takes what these take.
    """
    began = time.monotonic()
    yield
    took, busy = time.monotonic() - began, os.getloadavg()[0] / (os.cpu_count() or 1)
    exempt = {mark.name for mark in item.iter_markers()} & {"e2e", "gpu", "slow", "hypothesis"}
    if os.environ.get("CI") and took > SECONDS * max(1, busy) and not exempt:
        pytest.fail(f"took {took:.1f} s: shorten it, or mark it slow(reason) or e2e", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """What the tests of this process started has ended when they have."""
    yield
    helpers = [child for child in psutil.Process().children() if any(name in _words(child) for name in HELPERS)]
    left = [child for child in psutil.Process().children(recursive=True) if child not in helpers]
    names = [_words(child) for child in left if child.status() != psutil.STATUS_ZOMBIE]
    for child in left:
        child.kill()
    assert not names, f"tests left processes behind: {names}"


def _words(process: psutil.Process) -> str:
    return " ".join(process.cmdline())
