"""PNG texts as other programs read them, and files that are whole or not there."""

import json
import os
import re
import resource
from pathlib import Path

import pytest
import torch
from fusing import fuse
from merging import merge_of
from PIL import Image
from sampling import CPU, one, preset

from lcmmerge.archs import identify
from lcmmerge.draw import png
from lcmmerge.draw.draw import Drawn
from lcmmerge.draw.jobs import Job, jobs_of
from lcmmerge.draw.live import plan_live
from lcmmerge.draw.presets import Preset
from lcmmerge.errors import OutputError
from lcmmerge.tensors import open_source

PRESET = Preset("dpm-solver++", "DPMSolverMultistepScheduler", 20, 7.5, {"timestep_spacing": "trailing"})
ORIGIN = png.Origin({"name": "my, model.safetensors", "architecture": "sd1", "terms": []}, "float32", "cpu")
JOB = Job('a "paper" fox,\nλ', "hat: red", 7, 64, 128)
# How the web UI takes the last line apart, from its documentation of the format: `key: value` or `key: "json"`.
FACT = re.compile(r'\s*([\w ]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def drawn(job=JOB):
    return Drawn(job, Image.new("RGB", (job.width, job.height), "navy"), None)


def facts(text):
    found = dict(FACT.findall(text))
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found.items()}


def test_texts_are_read_by_pillow(tmp_path):
    path = tmp_path / "new" / "image.png"
    png.save(drawn(), path, PRESET, ORIGIN)
    with Image.open(path) as image:
        assert image.size == (64, 128)
        *prompt, negative, last = image.text["parameters"].split("\n")
        record = json.loads(image.text["lcmmerge"])
    assert "\n".join(prompt) == JOB.prompt
    assert negative == "Negative prompt: hat: red"
    assert facts(last) == {
        "Steps": "20", "Sampler": "DPM++ 2M", "CFG scale": "7.5", "Seed": "7", "Size": "64x128",
        "Model": "my, model", "Version": facts(last)["Version"],
    }  # fmt: skip
    assert (record["prompt"], record["negative"], record["seed"]) == (JOB.prompt, "hat: red", 7)
    assert (record["width"], record["height"], record["dtype"], record["device"]) == (64, 128, "float32", "cpu")
    assert record["settings"] == PRESET.settings
    assert (record["scheduler"], record["steps"], record["guidance"]) == (PRESET.scheduler, 20, 7.5)
    assert record["model"]["name"] == "my, model.safetensors"
    assert record["torch"] == torch.__version__


def test_an_accelerated_image_says_what_web_uis_call_off():
    lcm = Preset("lcm", "LCMScheduler", 4, 0.0)
    text = png.parameters(one(), lcm, ORIGIN)
    assert text.startswith("the thing\nSteps: 4, Sampler: LCM, CFG scale: 1, Seed: 3, Size: 64x64, ")


def test_a_live_merge_names_its_terms_and_no_path(files, tmp_path):
    inputs = files("sd1")
    plan = plan_live(merge_of(str(inputs.base()), style=str(inputs.style), strengths=(0.5, 1.0), lcm=str(inputs.lcm)))
    origin = png.Origin.of(plan.base, plan, torch.float32, CPU)
    terms = origin.model["terms"]
    assert [(term["term"], term["name"], term["lambda"]) for term in terms] == [
        ("style", "sd1-style.safetensors", 0.5), ("lcm", "sd1-lcm.safetensors", 1.0),
    ]  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{64}", term["sha256"]) for term in terms)
    png.save(drawn(), tmp_path / "image.png", preset(inputs.folder()), origin)
    data = (tmp_path / "image.png").read_bytes()
    assert str(inputs.root).encode() not in data
    assert str(Path.home()).encode() not in data
    assert not any(tmp_path.name.encode() in chunk for chunk in data.split(b"tEXt"))


def test_a_baked_model_is_named_by_its_hash(files, tmp_path):
    inputs, target = files("sd1"), tmp_path / "fused.safetensors"
    report = fuse(inputs.base(), target, lcm=inputs.lcm)
    origin = png.Origin.of(identify(open_source(target)), None, torch.float16, CPU)
    assert origin.model["hash_sha256"] == f"0x{report.sha256['fused.safetensors']}"
    assert (origin.dtype, origin.device) == ("float16", "cpu")


def test_the_same_image_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        png.save(drawn(), tmp_path / name, PRESET, ORIGIN)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_names():
    jobs = jobs_of(["a", "b"], (64, 64), seed=5, count=2)
    assert png.names_of(jobs) == ["0000-5.png", "0001-6.png", "0002-5.png", "0003-6.png"]


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "0001-6.png").touch()
    names = ["0000-5.png", "0001-6.png"]
    with pytest.raises(OutputError, match=r"0001-6\.png: exists already") as refused:
        png.check_folder(tmp_path, names, force=False)
    assert "--force" in refused.value.hint
    png.check_folder(tmp_path, names, force=True)
    png.check_folder(tmp_path / "new", names, force=False)
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        png.check_folder(tmp_path / "file", [], force=True)
    with pytest.raises(OutputError, match="no such folder"):
        png.check_folder(tmp_path / "no" / "folder", [], force=True)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="not writable"):
            png.check_folder(tmp_path / "locked", [], force=True)


def test_a_full_disk_leaves_nothing(tmp_path):
    """The limit on a file's size stands for the disk."""
    path = tmp_path / "image.png"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written") as refused:
            png.save(drawn(), path, PRESET, ORIGIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == []
