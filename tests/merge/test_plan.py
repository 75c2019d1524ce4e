"""Everything is known from headers: a plan of real-size files reads none of their 7 GB."""

import json
import shutil
import time
from math import prod

import pytest
from hollow import hollow_lora, hollow_model
from published import shapes


@pytest.mark.parametrize(("name", "parameters"), [("sd1", 278), ("sdxl", 788), ("ssd1b", 423)])
def test_a_real_size_model_is_planned_without_reading_it(name, parameters, tmp_path, cli):
    nbytes = 2 * sum(map(prod, shapes(name).values()))
    base = hollow_model(tmp_path / "base.safetensors", name)
    lcm = hollow_lora(tmp_path / "lcm.safetensors", name, 64)
    started = time.process_time()
    done = cli("fuse", base, "--lcm", lcm, "-o", tmp_path / "fused", "--dry-run", "--json")
    assert time.process_time() - started < 5
    if shutil.disk_usage(tmp_path).free < nbytes + (1 << 25):
        assert "the disk has" in done.err
        return
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["terms"][0]["parameters"] == {"unet": parameters}
    assert plan["bytes"] == nbytes


def test_shards_of_a_real_size_model_keep_to_their_size(tmp_path, cli):
    base = hollow_model(tmp_path / "base.safetensors", "sd1")
    lcm = hollow_lora(tmp_path / "lcm.safetensors", "sd1", 8)
    done = cli("fuse", base, "--lcm", lcm, "-o", tmp_path / "fused", "--dry-run", "--json", "--max-shard-size", "500MB")
    if done.code:
        pytest.skip("the disk is too full")
    plan = json.loads(done.out)
    assert [file["path"] for file in plan["files"]] == [f"fused-{n:05}-of-00005.safetensors" for n in range(1, 6)]
    assert all(file["bytes"] <= 500e6 for file in plan["files"])
    assert sum(file["bytes"] for file in plan["files"]) == plan["bytes"]
