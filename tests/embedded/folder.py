"""The folder of the embedded model: what is written there, and read again by the next stage.

Every stage reads the half-precision files that ship, not the weights that the stage before it had in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pico import scheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedded.judge import Judge
from embedded.scenes import STYLES, caption
from embedded.text import embedded, text_encoder, tokenizer
from lcmmerge import zoo
from lcmmerge.refs.tokenizers import complete

SHIPPED = Path(zoo.__file__).parent / "digits"


def classic(base: Path) -> None:
    """A pipeline's folder as transformers 4 reads it, too: 5 leaves out ``text_model.``, vocab.json and merges.txt."""
    file = base / "text_encoder" / "model.safetensors"
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    save_file({f"text_model.{name}": tensor for name, tensor in tensors.items()}, file, {"format": "pt"})
    complete(base)


@dataclass(frozen=True, slots=True)
class Folder:
    path: Path

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def judge(self) -> Path:
        return self.path / "judge.safetensors"

    @property
    def claim(self) -> Path:
        return self.path / "claim.json"

    def lora(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    @property
    def loras(self) -> tuple[str, ...]:
        return (*STYLES, "lcm")

    def save_vae(self, vae: AutoencoderKL) -> None:
        vae.half().save_pretrained(self.base / "vae")

    def load_vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.base / "vae").float().eval().requires_grad_(False)

    def save_base(self, unet: UNet2DConditionModel) -> None:
        tokens = tokenizer()
        StableDiffusionPipeline(
            vae=self.load_vae().half(),
            text_encoder=text_encoder(len(tokens)).half(),
            tokenizer=tokens,
            unet=unet.half(),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(self.base)
        classic(self.base)

    def load_unet(self) -> UNet2DConditionModel:
        unet = UNet2DConditionModel.from_pretrained(self.base / "unet").float().eval().requires_grad_(False)
        return unet.to(memory_format=torch.channels_last)

    def save_judge(self, judge: Judge) -> None:
        save_file({name: tensor.half() for name, tensor in judge.state_dict().items()}, self.judge)

    def load_judge(self) -> Judge:
        judge = Judge()
        judge.load_state_dict({name: tensor.float() for name, tensor in load_file(self.judge).items()})
        return judge.eval().requires_grad_(False)


def prompts() -> Tensor:
    """[11, tokens, hidden]: the ten digits' captions and the empty one, as the shipped text encoder has them."""
    tokens = tokenizer()
    encoder = text_encoder(len(tokens)).half().float()
    return embedded(tokens, encoder, [*(caption(digit) for digit in range(10)), ""])
