from __future__ import annotations

from typing import Any

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.training import POSITIVE, Sections, job_of, option, show_result, training_options
from lcmmerge.draw import quiet_libraries
from lcmmerge.extras import check_installed
from lcmmerge.output import Output

RATE = 1e-4


@click.command(cls=Sections, short_help="Make a style LoRA τ′: plain diffusion training.")
@click.argument("base", type=REFERENCE)
@training_options(
    option("--snr-gamma", type=POSITIVE, help="γ of min-SNR weighting, such as 5.  [default: all timesteps alike]"),
    rank=16,
    batch=4,
    learning_rate=f"{RATE:g}",
)
def train_style(base: str, output: Output, **given: Any) -> None:
    """Tune a LoRA of BASE's U-Net on images, as θ_pre + λ1·τ′ + λ2·τ_LCM needs it.

    It trains the modules that the LCM-LoRA has. Beside the output stands a work folder with checkpoints, log.csv
    and sheets of samples. Several GPUs: `accelerate launch -m lcmmerge train-style …`.

    \b
      lcmmerge train-style base.safetensors --data images -o style.safetensors
      lcmmerge train-style base --data images --caption "in papercut style" --steps 500 -o style.safetensors
    """
    check_installed("train")
    quiet_libraries()
    from lcmmerge.train.job import DIFFUSION
    from lcmmerge.train.run import run

    snr_gamma = given.pop("snr_gamma")
    job = job_of(base, given, learning_rate=RATE, kind=DIFFUSION, snr_gamma=snr_gamma)
    show_result(run(job, output), output)
