"""Consistency fine-tuning and plain diffusion against their equations; what the schedule and the grid must be."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given
from hypothesis import strategies as st
from pico import pico, short_unet
from training import batch_of

from lcmmerge.errors import IncompatibleError
from lcmmerge.train.consistency import Grid, boundary, consistent
from lcmmerge.train.networks import LoraNetworks
from lcmmerge.train.noise import Noise
from lcmmerge.train.objectives.diffusion import Diffusion
from lcmmerge.train.objectives.lcd import LatentConsistencyDistillation
from lcmmerge.train.objectives.lcf import LatentConsistencyFineTuning

BOTH = ["sd1", "sd2"]  # ε and v


@cache
def networks_of(name: str) -> LoraNetworks:
    """To be left as they are."""
    networks = LoraNetworks(short_unet(name), Noise.of(pico(name).pipeline.scheduler.config), 2, 2.0, seed=1)
    with torch.no_grad():
        for key, parameter in networks.trained().items():
            if ".lora_B." in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return networks


@pytest.mark.parametrize("name", BOTH)
def test_one_ddim_step_is_diffusers(name: str) -> None:
    config = pico(name).pipeline.scheduler.config
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(50)
    noise = Noise.of(config)
    draw = torch.Generator().manual_seed(0)
    noisy, output = torch.randn(2, 1, 4, 8, 8, generator=draw)
    start, end = torch.tensor([519]), torch.tensor([499])

    clean, epsilon = noise.read(output, noisy, start)

    expected = scheduler.step(output, 519, noisy)
    torch.testing.assert_close(noise.ddim(clean, epsilon, end), expected.prev_sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_what_is_predicted_of_noised_latents_is_the_latents(name: str) -> None:
    noise = Noise.of(pico(name).pipeline.scheduler.config)
    clean, epsilon = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 19, 499, 980, 999])
    noisy = noise.add(clean, epsilon, timesteps)

    read = noise.read(noise.target(clean, epsilon, timesteps), noisy, timesteps)

    torch.testing.assert_close(read[0], clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read[1], epsilon, rtol=1e-4, atol=1e-4)


def test_a_model_of_clean_images_cannot_be_trained() -> None:
    with pytest.raises(IncompatibleError, match="'sample'"):
        Noise.of({"prediction_type": "sample", "num_train_timesteps": 1000})


def test_the_consistency_function_is_the_one_that_lcm_scheduler_samples() -> None:
    config = pico("sd1").pipeline.scheduler.config
    scheduler = LCMScheduler.from_config(config)
    scheduler.set_timesteps(4, original_inference_steps=50)
    noisy, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps.tolist():
        expected = scheduler.step(output, timestep, noisy, generator=torch.Generator()).denoised
        ours = consistent(Noise.of(config), output, noisy, torch.tensor([timestep]))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_at_zero_the_consistency_function_is_the_identity() -> None:
    skip, out = boundary(torch.tensor([0]))
    assert (skip.item(), out.item()) == (1.0, 0.0)


@given(count=st.sampled_from([10, 20, 25, 50, 100]), seed=st.integers(0, 2**32))
def test_the_grid_is_that_of_the_scripts(count: int, seed: int) -> None:
    grid = Grid(count)
    start, end = grid.draw(64, torch.Generator().manual_seed(seed))
    allowed = {grid.skip * n - 1 for n in range(1, count + 1)}
    assert set(start.tolist()) <= allowed
    assert all(e == max(s - grid.skip, 0) for s, e in zip(start.tolist(), end.tolist(), strict=True))


def test_guiding_the_parts_of_a_ddim_step_is_guiding_the_step() -> None:
    """(1 + w)·Ψ(c) − w·Ψ(∅), since DDIM is linear."""
    networks, batch = networks_of("sd1"), batch_of("sd1")
    noise, w = networks.noise, torch.tensor([1.0, 7.5, 14.0])
    start, end = torch.tensor([19, 499, 999]), torch.tensor([0, 479, 979])
    with torch.no_grad():
        outputs = [networks.teacher(batch.latents, start, c) for c in (batch.prompt, batch.blank)]
        steps = [noise.ddim(*noise.read(output, batch.latents, start), end) - batch.latents for output in outputs]
        solved = LatentConsistencyDistillation._solve(networks, batch.latents, start, end, batch, w)
    guidance = w[:, None, None, None]
    expected = batch.latents + (1 + guidance) * steps[0] - guidance * steps[1]
    torch.testing.assert_close(solved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_fine_tuning_compares_two_noisings_of_one_image(name: str) -> None:
    networks, batch = networks_of(name), batch_of(name)
    loss = LatentConsistencyFineTuning(distance="l2").loss(networks, batch, torch.Generator().manual_seed(4))

    draw, noise = torch.Generator().manual_seed(4), networks.noise
    n = torch.randint(50, (3,), generator=draw)
    torch.rand(3, generator=draw)  # w, which this model is not told
    epsilon = torch.randn(batch.latents.shape, generator=draw)
    images = []
    for t in (20 * n + 19, (20 * n - 1).clamp(min=0)):
        noisy = noise.alphas[t][:, None, None, None] * batch.latents + noise.sigmas[t][:, None, None, None] * epsilon
        output = networks.model(noisy, t, batch.prompt.hidden).sample
        images.append(consistent(noise, output, noisy, t))
    torch.testing.assert_close(loss, ((images[0] - images[1]) ** 2).mean(), rtol=1e-5, atol=1e-6)
    assert loss.item() > 0


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_diffusion_is_the_error_of_the_prediction(name: str, gamma: float | None) -> None:
    networks, batch = networks_of(name), batch_of(name)
    loss = Diffusion(gamma).loss(networks, batch, torch.Generator().manual_seed(4))

    draw, noise = torch.Generator().manual_seed(4), networks.noise
    timesteps = torch.randint(1000, (3,), generator=draw)
    epsilon = torch.randn(batch.latents.shape, generator=draw)
    errors = []
    for row, t in enumerate(timesteps.tolist()):
        alpha, sigma = noise.alphas[t], noise.sigmas[t]
        noisy = alpha * batch.latents[row] + sigma * epsilon[row]
        output = networks.model(noisy[None], t, batch.prompt.hidden[row : row + 1]).sample[0]
        wanted = epsilon[row] if name == "sd1" else alpha * epsilon[row] - sigma * batch.latents[row]
        snr = (alpha / sigma) ** 2
        weight = 1.0 if gamma is None else min(snr, gamma) / (snr if name == "sd1" else snr + 1)
        errors.append(weight * ((output - wanted) ** 2).mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-5, atol=1e-6)
