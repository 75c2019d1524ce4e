"""``PYTHONPATH=tests python -m embedded [FOLDER]``: make the embedded model and measure the claim.

Stage by stage: autoencoder, base, judge, style LoRAs, LCM-LoRA, claim. What is there is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from embedded import base, judge, loras, report, vae
from embedded.folder import SHIPPED, Folder, prompts
from embedded.loop import Progress
from embedded.scenes import EVERYTHING, STYLES
from lcmmerge.output import Output

EVERY = 100  # steps between notes


@click.command(help="Make the embedded model in FOLDER; by default where lcmmerge is installed.")
@click.argument("folder", type=click.Path(path_type=Path), default=SHIPPED)
def main(folder: Path) -> None:
    build(Folder(folder), Output())


def build(folder: Folder, output: Output) -> None:
    work = folder.path.with_name(f"{folder.path.name}.work")  # images, latents, checkpoints
    folder.path.mkdir(parents=True, exist_ok=True)
    if not (folder.base / "vae").exists():
        with _noted(output, "vae") as progress:
            folder.save_vae(vae.train(progress))
    if not (folder.base / "model_index.json").exists():
        with _noted(output, "base") as progress:
            data = base.latents(folder.load_vae(), EVERYTHING, base.PICTURES, seed=10_000)
            folder.save_base(base.train(data, prompts(), progress))
    if not folder.judge.exists():
        with _noted(output, "judge") as progress:
            folder.save_judge(judge.train(folder.load_vae(), progress))
    for name in STYLES:
        if not folder.lora(name).exists():
            loras.train_style(folder.base, name, folder.lora(name), work, output)
    if not folder.lora("lcm").exists():
        loras.train_lcm(folder.base, folder.lora("lcm"), work, output)
    if not folder.claim.exists():
        report.write(folder, output)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _noted(output: Output, stage: str) -> Iterator[Progress]:
    """Says every ``EVERY`` steps how the stage goes."""
    losses: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        losses.append(loss)
        if step % EVERY == 0 or step == steps:
            output.note(f"{stage}: step {step} of {steps}, loss {sum(losses[-EVERY:]) / len(losses[-EVERY:]):.4f}")

    yield progress


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
