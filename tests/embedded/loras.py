"""The style LoRAs and the LCM-LoRA, by lcmmerge's own trainer: ``lcmmerge train-style`` and ``lcmmerge distill``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from embedded.claim import GUIDANCE
from embedded.scenes import EVERYTHING, STYLES, Look, caption, draw
from lcmmerge.output import Output
from lcmmerge.train.job import DIFFUSION, LCD, TrainingJob
from lcmmerge.train.run import encode_only, run
from lcmmerge.train.settings import TrainingSettings

USUAL = TrainingSettings(
    batch_size=32, warmup=20, decay="cosine", checkpoint_every=250, validate_every=0, precision="no"
)  # fmt: skip


def train_style(base: Path, name: str, target: Path, work: Path, output: Output) -> None:
    settings = replace(USUAL, steps=300, learning_rate=1e-3)
    data = _encoded(base, STYLES[name], 3000, 60_000, work / name, output)
    job = TrainingJob(
        str(base), str(data), target, DIFFUSION, settings, rank=4, snr_gamma=5.0, drop_captions=0.1, cfg=GUIDANCE
    )
    run(replace(job, validate=0, work=work / f"{name}.training", resume=True), output)


def train_lcm(base: Path, target: Path, work: Path, output: Output) -> None:
    settings = replace(USUAL, steps=700, learning_rate=1e-3)
    data = _encoded(base, EVERYTHING, 8000, 70_000, work / "lcm", output)
    job = TrainingJob(str(base), str(data), target, LCD, settings, rank=16, w=(1.0, 2.5))
    run(replace(job, validate=0, work=work / "lcm.training", resume=True), output)


def _encoded(base: Path, look: Look, count: int, seed: int, folder: Path, output: Output) -> Path:
    """Pictures with their captions beside them, and what the trainer makes of them."""
    images, encoded = folder / "images", folder / "encoded"
    images.mkdir(parents=True, exist_ok=True)
    pictures, digits = draw(look, count, seed)
    grey = ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for number, (pixels, digit) in enumerate(zip(grey, digits.tolist(), strict=True)):
        Image.fromarray(pixels).save(images / f"{number:05}.png")
        (images / f"{number:05}.txt").write_text(caption(digit), encoding="utf-8")
    encode_only(TrainingJob(str(base), str(images), encoded), output)
    return encoded
