"""Our pipeline beside diffusers' own: the same latents, whatever the architecture, the scheduler and the guidance."""

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from running import exact, of_modules, plain
from sampling import drawn, one, pipeline, preset

from lcmmerge.graphs.drawing import model_of, open_pipeline, origin_of
from lcmmerge.graphs.pipeline import OnnxPipeline, guidance_embedding
from lcmmerge.sample import drawable, presets

# Float32 on the CPU, with kernels that add in another order; guided random networks' latents reach 50.
RELATIVE = 1e-5
JOBS = [one("a", "b"), one("the thing", "", seed=4), one("a fox", size=(72, 104))]


@pytest.fixture(scope="module")
def export(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.job == theirs.job
        error = (ours.latents - theirs.latents).abs().max() / theirs.latents.abs().max()
        assert error < RELATIVE
        assert np.abs(np.asarray(ours.image).astype(int) - np.asarray(theirs.image)).max() <= 1


@pytest.fixture(scope="module", params=["cpu", "torch"])
def ours(request, export):
    return open_pipeline(export, request.param)


@pytest.mark.parametrize("asked", [{"scheduler": "ddim"}, {"scheduler": "euler"}, {"accelerator": "tcd"}])
def test_an_export_draws_as_diffusers_does(asked, ours, files):
    folder = files("sd1").folder("fp32")
    chosen = preset(folder, **asked)
    assert_same(drawn(ours, JOBS, chosen, 2), drawn(pipeline(folder), JOBS, chosen, 2))


def test_sdxl_s_graphs(files, tmp_path_factory):
    """SSD-1B's, of half as many blocks; at odd latents, without and with guidance: zeros for an empty prompt."""
    folder = files("ssd1b").folder("fp32")
    ours, theirs = open_pipeline(plain(tmp_path_factory, folder), "cpu"), pipeline(folder)
    for scheduler in ("lcm", "unipc"):
        chosen = preset(folder, scheduler=scheduler)
        assert_same(drawn(ours, JOBS[2:], chosen), drawn(theirs, JOBS[2:], chosen))


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
@pytest.mark.parametrize("scheduler", ["lcm", "unipc"])
def test_other_architectures(name, scheduler, files, export):
    """Their graphs are compared with torch's modules one by one, in test_graph."""
    folder = files(name).folder("fp32")
    chosen = preset(folder, scheduler=scheduler)
    ours = OnnxPipeline(of_modules(folder, export))
    assert_same(drawn(ours, JOBS, chosen, 2), drawn(pipeline(folder), JOBS, chosen, 2))


@pytest.fixture(scope="module")
def full_lcm(files, tmp_path_factory):
    """A pico with a guidance embedding, drawn by LCMScheduler."""
    folder = tmp_path_factory.mktemp("full-lcm") / "full"
    pipe = pipeline(files("sd1").folder("fp32"))
    config = dict(pipe.unet.config) | {"time_cond_proj_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pipe.unet = UNet2DConditionModel.from_config(config).eval()
    pipe.scheduler = preset(files("sd1").folder("fp32"), scheduler="lcm").build(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    return folder


def test_a_full_lcm_is_told_its_guidance(full_lcm, tmp_path_factory):
    chosen = preset(full_lcm)
    assert (chosen.scheduler, chosen.guidance) == ("LCMScheduler", 8.5)
    ours = open_pipeline(plain(tmp_path_factory, full_lcm), "cpu")
    assert_same(drawn(ours, JOBS, chosen, 2), drawn(pipeline(full_lcm), JOBS, chosen, 2))


@pytest.mark.parametrize("dim", [16, 17])
def test_the_guidance_embedding_is_diffusers(dim):
    scales = torch.tensor([0.0, 1.5, 7.5])
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales, dim)
    torch.testing.assert_close(guidance_embedding(scales, dim), expected)


def test_an_export_is_drawn_as_its_manifest_says(ours, export):
    model = model_of(export)
    manifest = json.loads((export / "lcmmerge.json").read_text())
    found = presets.choose(model, export)
    assert found.as_dict() == manifest["sampling"] | {"name": "recorded"}
    assert drawable.native_size(export) == (64, 64)
    facts = origin_of(model, ours.runtime).model
    assert (facts["provider"], facts["graph"]) == (ours.runtime.provider, "fused")
    assert ("onnxruntime" in facts) == (ours.runtime.provider == "cpu")
    assert facts["unet_sha256"] == manifest["files"]["unet/diffusion_pytorch_model.safetensors"]["sha256"]
