"""Everything is known from headers: a plan of real-size files reads none of their 7 GB."""

import json
import shutil
import struct
import time
from math import prod

import pytest
from published import shapes

from lcmmerge.archs import architectures, lora_targets


def hollow(path, tensors):
    """A safetensors file of fp16 tensors whose data are a hole: it takes no room on the disk."""
    header, position = {}, 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + 2 * prod(shape)]}
        position += 2 * prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return path


def hollow_model(path, name):
    stored = {}
    real = shapes(name)
    for key, slots in architectures()[name].keymap("single-file").stored.items():
        present = [slot for slot in slots if slot.parameter in real]
        if present:
            shape = real[present[0].parameter]
            shape = shape[::-1] if present[0].transposed else shape
            shape = (*shape, 1, 1) if present[0].conv1x1 else shape
            stored[key] = (shape[0] * len(present), *shape[1:])
    return hollow(path, stored)


def hollow_lora(path, name, rank):
    tensors = {}
    for module, (out, *rest) in lora_targets(shapes(name)).items():
        key = "lora_unet_" + module.removeprefix("unet.").replace(".", "_")
        tensors |= {
            f"{key}.lora_down.weight": (rank, *rest),
            f"{key}.lora_up.weight": (out, rank, *(1 for _ in rest[1:])),
            f"{key}.alpha": (),
        }
    return hollow(path, tensors)


@pytest.mark.parametrize(
    ("name", "nbytes", "parameters"), [("sd1", 2_132_471_046, 278), ("sdxl", 6_938_008_462, 788), ("ssd1b", 4_465_010_822, 423)]
)
def test_a_real_size_model_is_planned_without_reading_it(name, nbytes, parameters, tmp_path, cli):
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
