"""Our pipeline beside diffusers' own: the same latents, whatever the architecture, the scheduler and the guidance."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from exporting import graphs
from running import exact, linked, of_graphs, of_modules
from sampling import drawn, one, pipeline, preset

from lcmmerge.accelerators import OFFICIAL
from lcmmerge.draw import drawable, presets
from lcmmerge.draw.sampling import guidance_embedding
from lcmmerge.export.pipeline import OnnxPipeline, model_of, open_pipeline, origin_of

pytestmark = pytest.mark.e2e

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


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "scheduler"), [("sd2", "unipc"), ("sdxl", "unipc"), ("sdxl", "lcm")])
def test_other_architectures(name, scheduler, files, export):
    """Their graphs are compared with torch's modules one by one, in test_graph."""
    folder = files(name).folder("fp32")
    chosen = preset(folder, scheduler=scheduler)
    ours = OnnxPipeline(of_modules(folder, export))
    assert_same(drawn(ours, JOBS, chosen, 2), drawn(pipeline(folder), JOBS, chosen, 2))


def test_a_full_lcm_is_told_its_guidance(export, tmp_path, tmp_path_factory):
    """SSD-1B's graphs, of two text encoders; sizes of which one is odd in latents."""
    theirs = linked("ssd1b-lcm", tmp_path, graphs(tmp_path_factory))
    ours = OnnxPipeline(of_graphs(tmp_path, export))
    chosen = replace(presets.of_sampling("own", OFFICIAL.sampling), steps=2, guidance=8.5)
    assert_same(drawn(ours, JOBS, chosen, 2), drawn(theirs, JOBS, chosen, 2))


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
