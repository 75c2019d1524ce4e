"""Scores and sheets, against diffusers' own pipelines and the objectives' own losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline
from distilling import networks
from pico import pico
from PIL import Image
from torch import Tensor
from training import batch_of

from lcmmerge.train.networks import LoraNetworks
from lcmmerge.train.objectives import TrainingObjective
from lcmmerge.train.objectives.diffusion import Diffusion
from lcmmerge.train.objectives.lcd import LatentConsistencyDistillation
from lcmmerge.train.objectives.lcf import LatentConsistencyFineTuning
from lcmmerge.train.sampling import Sampler
from lcmmerge.train.validate import GAP, validation, write_sheet

SEED = 5


def sampler(name: str, guidance: float = 3.0) -> Sampler:
    return Sampler(dict(pico(name).pipeline.scheduler.config), guidance, SEED)


def drawn_by_diffusers(name: str, found: LoraNetworks, *, few: bool) -> Tensor:
    """The pipeline's latents, from the same start noise and, after it, the same generator."""
    parts = pico(name).pipeline.components | {"unet": found.model}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    config = {key: pipeline.scheduler.config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    config |= {"prediction_type": pipeline.scheduler.config["prediction_type"]}
    kind, more = (LCMScheduler, {}) if few else (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"})
    pipeline.scheduler = kind(**config, **more)
    batch, generator = batch_of(name), torch.Generator().manual_seed(SEED)
    noise = torch.randn(batch.latents.shape, generator=generator)
    return pipeline(
        prompt_embeds=batch.prompt.hidden,
        negative_prompt_embeds=batch.blank.hidden,
        latents=noise,
        generator=generator,
        num_inference_steps=4 if few else 25,
        guidance_scale=1.0 if few else 3.0,
        output_type="latent",
    ).images


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_few_steps_are_the_pipelines(name: str) -> None:
    found = networks(name, short=True)
    with torch.no_grad():
        latents = sampler(name).few(found, batch_of(name))
    assert torch.allclose(latents, drawn_by_diffusers(name, found, few=True), rtol=1e-4, atol=1e-4)


@pytest.mark.e2e
def test_many_steps_are_the_pipelines() -> None:
    found = networks("sd1", short=True)
    with torch.no_grad():
        latents = sampler("sd1").many(found, batch_of("sd1"))
    with found.without_lora():
        expected = drawn_by_diffusers("sd1", found, few=False)
    assert torch.allclose(latents, expected, rtol=1e-3, atol=1e-3)


def test_other_grids_have_other_timesteps() -> None:
    """A network that learnt 10 points of time is asked about these alone."""
    asked = []
    found = networks("sd1", short=True)
    found.model.register_forward_pre_hook(lambda module, given: asked.append(int(given[1][0])))
    with torch.no_grad():
        replace(sampler("sd1"), original_steps=10).few(found, batch_of("sd1"))
    assert asked == [999, 799, 499, 299]


@pytest.mark.e2e
def test_distillation_is_scored_by_pairs() -> None:
    """The teacher's samples are drawn once; the student's whenever it is scored."""
    found, batches = networks("sd1", short=True), [batch_of("sd1", 1), batch_of("sd1", 1, seed=12)]
    scored = validation(LatentConsistencyDistillation(), batches, sampler("sd1"), full=False)
    with torch.no_grad():
        before, drawn, beside = scored(found), list(scored.drawn), list(scored.beside)
        for parameter in found.trained().values():
            parameter.mul_(0.5)
        after = scored(found)
    assert before == pytest.approx(float((torch.cat(drawn) - torch.cat(beside)).square().mean()), rel=1e-5)
    assert after != before
    assert all(one is other for one, other in zip(beside, scored.beside, strict=True))


@pytest.mark.parametrize("objective", [Diffusion(), LatentConsistencyFineTuning()])
def test_others_are_scored_by_their_loss(objective: TrainingObjective) -> None:
    found, batches = networks("sd1", short=True), [batch_of("sd1", 2), batch_of("sd1", 2, seed=12)]
    scored = validation(objective, batches, sampler("sd1"), full=True)
    quick = replace(scored, draw=lambda networks, batch: batch.latents, compare=None)
    with torch.no_grad():
        losses = [
            objective.loss(found, batch, torch.Generator().manual_seed(SEED + number))
            for number, batch in enumerate(batches)
        ]
        assert quick(found) == quick(found) == pytest.approx(float(sum(losses)) / 2, rel=1e-6)


def test_a_sheet_has_the_student_left_and_the_teacher_right(tmp_path: Path) -> None:
    vae = pico("sd1").pipeline.vae
    scored = validation(LatentConsistencyDistillation(), [], sampler("sd1"), full=False)
    student, teacher = batch_of("sd1", 3).latents, batch_of("sd1", 3, seed=12).latents
    scored.drawn[:], scored.beside[:] = [student[:2], student[2:]], [teacher]
    write_sheet(tmp_path / "sheets" / "step-000001.png", vae, scored)
    sheet = Image.open(tmp_path / "sheets" / "step-000001.png")
    assert sheet.size == (4 * 64 + GAP, 2 * 64)
    for number, (left, latents) in enumerate([(0, student), (2 * 64 + GAP, teacher)]):
        with torch.no_grad():
            decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pixels = pico("sd1").pipeline.image_processor.postprocess(decoded, output_type="np")
        third = np.asarray(sheet.crop((left, 64, left + 64, 128))) / 255
        assert np.abs(third - pixels[2]).max() < 0.01, number
