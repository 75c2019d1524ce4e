"""Cells on a Ray cluster of two workers here, of which one is killed: the same results as in one process."""

import os
import threading
import time
from dataclasses import replace
from importlib.util import find_spec

import psutil
import pytest
import torch
from searching import requested

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.run import search
from lcmmerge.search.store import Store
from lcmmerge.search.study import CELL

pytestmark = pytest.mark.e2e

WORKER = "ray::_Worker"  # how Ray names their processes


@pytest.fixture
def address(monkeypatch):
    """Of a cluster with two CPUs, in processes of its own."""
    if not find_spec("ray"):
        why = "there is no Ray: pip install 'lcmmerge[cluster]'"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def asked(files, tmp_path):
    return requested(files("sd1"), tmp_path)


def workers(name=WORKER):
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith(name)]


def kill_one(work, over, killed):
    """While it draws, when something is drawn."""
    while not (over.is_set() or killed):
        if any(work.rglob("*.safetensors")):
            for worker in workers(f"{WORKER}.draw")[:1]:
                worker.kill()
                killed.append(worker.pid)
        time.sleep(0.01)


def gone(seconds=30):
    """Whether all workers end in that time: Ray ends what a driver leaves when it comes to it."""
    deadline = time.monotonic() + seconds
    while workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not workers()


def test_two_workers_draw_what_one_process_draws_and_one_is_killed(asked, address, tmp_path):
    killed, over = [], threading.Event()
    killer = threading.Thread(target=kill_one, args=(asked.work, over, killed))
    killer.start()
    try:
        found = search(replace(asked, ray=address))
    finally:
        over.set()
        killer.join()
    assert killed
    assert gone()
    plain = search(replace(asked, work=tmp_path / "plain"))
    theirs, ours = (samples(result) for result in (found, plain))
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[key], ours[key], rtol=1e-4, atol=1e-4) for key in ours)
    assert found.scored.best.cell.lambdas == plain.scored.best.cell.lambdas


def samples(result):
    prepared = result.prepared
    store = Store(prepared.request.work / "latents", prepared.inputs)
    ask = prepared.ask(1)
    return {row.cell.lambdas: store.get(ask.drawing(row.cell)) for row in result.scored.rows if row.kind == CELL}


def test_where_no_cluster_answers(asked):
    with pytest.raises(LcmMergeError, match="no Ray cluster answers") as caught:
        search(replace(asked, ray="127.0.0.1:1"))
    assert "ray start --head" in caught.value.hint
    assert not asked.work.exists()
