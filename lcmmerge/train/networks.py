"""Student, teacher and target: three networks for the price of one where the student is a LoRA.

With a LoRA the teacher is the same U-Net with the LoRA switched off, and the target the student without gradients, as
LCM-LoRA does. A student that is a whole model has a frozen teacher beside it, and a target that trails it:
θ⁻ ← μ·θ⁻ + (1 − μ)·θ.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from lcmmerge.archs.targets import lora_targets
from lcmmerge.draw.sampling import guidance_embedding
from lcmmerge.train.batch import Conditioning
from lcmmerge.train.noise import Noise

ADAPTER = "student"
GUIDANCE_EMBEDDING = 256  # wide


class Networks(ABC):
    """The networks of a training, and how each is called.

    ``model`` is what is trained; ``forward`` what is called for it, which accelerate may have wrapped.
    """

    def __init__(self, model: UNet2DConditionModel, noise: Noise) -> None:
        self.model = model
        self.noise = noise
        self.forward: nn.Module = model

    @abstractmethod
    def teacher(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net before training: [B, C, h, w] → the same."""

    @abstractmethod
    def target(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, w: Tensor | None) -> Tensor:
        """f_θ⁻'s U-Net."""

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by the model's own names."""

    def student(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, w: Tensor | None) -> Tensor:
        """f_θ's U-Net; ``w`` [B] is told to a model with a guidance embedding, and else left out."""
        return _call(self.forward, self.model, noisy, timesteps, conditioning, w)

    def state(self) -> dict[str, Tensor]:
        """Everything that training has changed: what a checkpoint must hold."""
        return {name: parameter.detach() for name, parameter in self.trained().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for a state of other networks."""
        own = self.state()
        if {name: tensor.shape for name, tensor in state.items()} != {name: one.shape for name, one in own.items()}:
            raise ValueError("a state of other networks")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.noise = self.noise.to(device)

    def stepped(self) -> None:  # noqa: B027 - most have nothing to do
        """Called after each optimizer step."""


class LoraNetworks(Networks):
    """A LoRA on the modules that LCM-LoRA trains (lcmmerge.archs.targets); ΔW = alpha / rank · up @ down."""

    def __init__(self, unet: UNet2DConditionModel, noise: Noise, rank: int, alpha: float, seed: int) -> None:
        self.rank, self.alpha = rank, alpha
        unet.requires_grad_(False)
        shapes = {f"unet.{name}": tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
        modules = [name.removeprefix("unet.") for name in lora_targets(shapes)]
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, init_lora_weights="gaussian")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet.add_adapter(config, adapter_name=ADAPTER)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        super().__init__(unet, noise)

    def teacher(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        with self.without_lora():
            return _call(self.model, self.model, noisy, timesteps, conditioning, None)

    def target(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, w: Tensor | None) -> Tensor:
        return _call(self.model, self.model, noisy, timesteps, conditioning, w)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Module, up [out, r] or [out, r, 1, 1], down [r, in] or [r, in, kh, kw]; without the scale."""
        state = self.state()
        for name, down in state.items():
            module, found, _ = name.partition(".lora_A.")
            if found:
                yield module, state[f"{module}.lora_B.{ADAPTER}.weight"], down

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        self.model.disable_adapters()
        try:
            yield
        finally:
            self.model.enable_adapters()


class FullNetworks(Networks):
    """The whole U-Net, told w by an embedding (``time_cond_proj_dim``) that is zero at first, as the LCM paper's.

    ``mu``: EMA rate of the target; None where the objective has none.
    """

    def __init__(
        self, unet: UNet2DConditionModel, noise: Noise, *, guided: bool, taught: bool, mu: float | None
    ) -> None:
        self._teacher = unet.requires_grad_(False).eval() if taught else None
        model = with_guidance(unet) if guided and not unet.config.time_cond_proj_dim else copy.deepcopy(unet)
        self.mu = mu
        self._target = copy.deepcopy(model).requires_grad_(False).eval() if mu is not None else None
        super().__init__(model.float().requires_grad_(True), noise)

    def teacher(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        assert self._teacher is not None  # the objective said that it teaches
        return _call(self._teacher, self._teacher, noisy, timesteps, conditioning, None)

    def target(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, w: Tensor | None) -> Tensor:
        target = self._target or self.model
        return _call(target, target, noisy, timesteps, conditioning, w)

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def state(self) -> dict[str, Tensor]:
        trailing = self._target.named_parameters() if self._target is not None else ()
        return super().state() | {f"target.{name}": parameter.detach() for name, parameter in trailing}

    def to(self, device: torch.device) -> None:
        super().to(device)
        for network in filter(None, (self._teacher, self._target)):
            network.to(device)

    def stepped(self) -> None:
        if self._target is None or self.mu is None:
            return
        with torch.no_grad():
            for trailing, parameter in zip(self._target.parameters(), self.model.parameters(), strict=True):
                trailing.lerp_(parameter.to(trailing.dtype), 1 - self.mu)


def with_guidance(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with a guidance embedding, which is zero: it draws as the original does, whatever w."""
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    guided = UNet2DConditionModel(**config | {"time_cond_proj_dim": GUIDANCE_EMBEDDING})
    guided.load_state_dict(unet.state_dict(), strict=False)
    nn.init.zeros_(guided.time_embedding.cond_proj.weight)
    return guided.to(unet.device)


def _call(
    forward: nn.Module, model: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning,
    w: Tensor | None,
) -> Tensor:  # fmt: skip
    width = model.config.time_cond_proj_dim
    told = guidance_embedding(w, width).to(noisy.dtype) if width and w is not None else None
    output: Tensor = forward(noisy, timesteps, timestep_cond=told, **conditioning.arguments(), return_dict=False)[0]
    return output
