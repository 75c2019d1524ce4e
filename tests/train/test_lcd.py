"""One optimisation step against Algorithm 1 (https://arxiv.org/abs/2311.05556), stated once more from its equations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pico import pico, short_unet
from torch import Tensor, nn
from torch.func import functional_call
from training import Recording, batch_of

from lcmmerge.train.batch import Batch, Conditioning
from lcmmerge.train.networks import ADAPTER, FullNetworks, LoraNetworks, Networks
from lcmmerge.train.noise import Noise
from lcmmerge.train.objectives.lcd import LatentConsistencyDistillation
from lcmmerge.train.settings import TrainingSettings
from lcmmerge.train.trainer import Trainer

RATE, DECAY, MU = 1e-3, 1e-2, 0.95
W_LOW, W_HIGH = 3.0, 15.0
Unet = Callable[[Tensor, Tensor, Conditioning, Tensor | None], Tensor]


def train_one_step(
    networks: Networks, batch: Batch, objective: LatentConsistencyDistillation, folder: Path
) -> tuple[float, torch.Generator]:
    """The loss, and the random numbers of the step once more."""
    watch = Recording()
    settings = TrainingSettings(1, len(batch.latents), learning_rate=RATE, weight_decay=DECAY, max_grad_norm=1e9)
    feed = lambda first, process, processes: iter([batch])  # noqa: E731
    trainer = Trainer(networks, objective, feed, settings, folder, watch, {}, Accelerator(cpu=True))
    trainer.train()
    return watch.losses[0], trainer._draw(0, 0)


def algorithm_1(
    student: Unet, target: Unet, teacher: Unet, batch: Batch, noise: Noise, draw: torch.Generator
) -> Tensor:  # fmt: skip
    """The loss in float64, from the equations; the random numbers in the order in which the trainer draws them."""
    batch = Batch(batch.latents.double(), precise(batch.prompt), precise(batch.blank))
    size = len(batch.latents)
    n = torch.randint(50, (size,), generator=draw)
    t, s = 20 * n + 19, (20 * n - 1).clamp(min=0)
    w = (W_LOW + (W_HIGH - W_LOW) * torch.rand(size, generator=draw)).double()
    epsilon = torch.randn(batch.latents.shape, generator=draw).double()
    at = (noise.alphas[t], noise.sigmas[t], noise.alphas[s], noise.sigmas[s])
    a_t, s_t, a_s, s_s = (values.double()[:, None, None, None] for values in at)
    z = a_t * batch.latents + s_t * epsilon

    def noise_of(output: Tensor, z: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return output if noise.prediction == "epsilon" else a * output + s * z

    def psi(c: Conditioning) -> Tensor:
        predicted = noise_of(teacher(z, t, c, None), z, a_t, s_t)
        return a_s / a_t * z - s_s * (s_t * a_s / (a_t * s_s) - 1) * predicted - z

    def f(unet: Unet, z: Tensor, t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        predicted = noise_of(unet(z, t, batch.prompt, w), z, a, s)
        scaled = 10.0 * t[:, None, None, None].double()
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        return skip * z + out * (z - s * predicted) / a

    with torch.no_grad():
        guided = w[:, None, None, None]
        previous = z + (1 + guided) * psi(batch.prompt) - guided * psi(batch.blank)
        wanted = f(target, previous, s, a_s, s_s)
    return ((f(student, z, t, a_t, s_t) - wanted) ** 2 + 0.001**2).sqrt().sub(0.001).mean()


def precise(conditioning: Conditioning) -> Conditioning:
    parts = (conditioning.hidden, conditioning.pooled, conditioning.time_ids)
    return Conditioning(*(None if part is None else part.double() for part in parts))


def adam_w(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The first step of AdamW, β = (0.9, 0.999): the moments' corrections cancel."""
    return parameter * (1 - RATE * DECAY) - RATE * gradient / (gradient.abs() + 1e-8)


def assert_stepped(before: dict[str, Tensor], after: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    """Where a gradient is tiny, AdamW's first step is the sign of rounding errors: there nothing can be compared."""
    compared = total = 0
    for key, gradient in gradients.items():
        clear = gradient.abs() > 1e-5
        expected = adam_w(before[key].double(), gradient).float()
        torch.testing.assert_close(after[key][clear], expected[clear], rtol=1e-5, atol=1e-5, msg=key)
        compared, total = compared + int(clear.sum()), total + clear.numel()
    assert compared > 0.3 * total


def unet_of(model: nn.Module, weights: dict[str, Tensor] | None = None) -> Unet:
    def call(z: Tensor, t: Tensor, c: Conditioning, w: Tensor | None) -> Tensor:
        told = None
        if w is not None and model.config.time_cond_proj_dim:
            frequencies = torch.exp(-math.log(10000) * torch.arange(128).double() / 127)
            told = torch.cat([(1000 * w[:, None] * frequencies).sin(), (1000 * w[:, None] * frequencies).cos()], 1)
        return functional_call(model, weights or {}, (z, t), {"timestep_cond": told, **c.arguments()}).sample

    return call


@pytest.mark.parametrize("name", ["sd1", "sd2", "ssd1b"])  # ε, v, and micro-conditioning
def test_a_step_of_a_lora_is_algorithm_1(name: str, tmp_path: Path) -> None:
    model = short_unet(name)
    noise = Noise.of(pico(name).pipeline.scheduler.config)
    batch, objective = batch_of(name), LatentConsistencyDistillation(W_LOW, W_HIGH)
    networks = LoraNetworks(copy.deepcopy(model), noise, rank=2, alpha=1.0, seed=5)
    with torch.no_grad():  # B = 0 leaves A no gradient
        for parameter in networks.trained().values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    before = {key: value.clone() for key, value in networks.state().items()}
    loss, draw = train_one_step(networks, batch, objective, tmp_path)

    model = model.double()
    factors = {key: value.double().requires_grad_(True) for key, value in before.items()}
    weights = dict(model.state_dict())
    for key, down in factors.items():
        module, is_down, _ = key.partition(".lora_A.")
        if is_down:
            up, weight = factors[f"{module}.lora_B.{ADAPTER}.weight"], weights[f"{module}.weight"]
            weights[f"{module}.weight"] = weight + 0.5 * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    student = unet_of(model, weights)
    expected = algorithm_1(student, student, unet_of(model), batch, noise, draw)
    gradients = torch.autograd.grad(expected, list(factors.values()))

    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert_stepped(before, networks.state(), dict(zip(before, gradients, strict=True)))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_step_of_a_whole_model_is_algorithm_1(name: str, tmp_path: Path) -> None:
    model = short_unet(name)
    noise = Noise.of(pico(name).pipeline.scheduler.config)
    batch, objective = batch_of(name), LatentConsistencyDistillation(W_LOW, W_HIGH)
    networks = FullNetworks(copy.deepcopy(model), noise, guided=True, taught=True, mu=MU)
    with torch.no_grad():  # otherwise w would not matter
        for network in (networks.model, networks._target):
            generator = torch.Generator().manual_seed(3)
            embedding = network.time_embedding.cond_proj.weight
            embedding += 0.05 * torch.randn(embedding.shape, generator=generator)
    guided = copy.deepcopy(networks.model)
    before = {key: value.clone() for key, value in networks.trained().items()}
    loss, draw = train_one_step(networks, batch, objective, tmp_path)

    weights = {key: value.detach().double().requires_grad_(True) for key, value in before.items()}
    model, guided = model.double(), guided.double()
    expected = algorithm_1(unet_of(guided, weights), unet_of(guided), unet_of(model), batch, noise, draw)
    gradients = torch.autograd.grad(expected, list(weights.values()))

    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    state = networks.state()
    assert_stepped(before, state, dict(zip(weights, gradients, strict=True)))
    for key in weights:
        trailing = MU * before[key] + (1 - MU) * state[key]
        torch.testing.assert_close(state[f"target.{key}"], trailing, rtol=1e-5, atol=1e-6, msg=key)


def test_a_guidance_embedding_of_zeros_changes_nothing() -> None:
    unet = short_unet("sd1")
    networks = FullNetworks(
        copy.deepcopy(unet), Noise.of(pico("sd1").pipeline.scheduler.config), guided=True, taught=True, mu=MU
    )
    batch = batch_of("sd1")
    timesteps, w = torch.tensor([19, 499, 999]), torch.tensor([5.0, 7.5, 15.0])
    with torch.no_grad():
        told = networks.student(batch.latents, timesteps, batch.prompt, w)
        untold = unet(batch.latents, timesteps, batch.prompt.hidden).sample
    torch.testing.assert_close(told, untold, rtol=1e-5, atol=1e-6)
