from __future__ import annotations

from typing import Any

import click

from lcmmerge.cli.common import output_options
from lcmmerge.cli.training import (
    COUNT,
    POSITIVE,
    Sections,
    data_options,
    job_of,
    optimisation_options,
    option,
    product_options,
    progress_options,
    section,
    show_result,
)
from lcmmerge.output import Output
from lcmmerge.sample import quiet_libraries

RATE = 1e-4


@click.command(cls=Sections, short_help="Make a style LoRA τ′: plain diffusion training.")
@click.argument("base")
@data_options
@section(
    "What is trained",
    option("--rank", type=COUNT, default=16, show_default=True),
    option("--alpha", type=POSITIVE, help="The LoRA is weighed by alpha / rank.  [default: the rank]"),
    option("--snr-gamma", type=POSITIVE, help="γ of min-SNR weighting, such as 5.  [default: all timesteps alike]"),
)
@optimisation_options(f"{RATE:g}", batch=4, steps=1000)
@progress_options
@product_options
@output_options
def train_style(base: str, output: Output, **given: Any) -> None:
    """Tune a LoRA of BASE's U-Net on images, as θ_pre + λ1·τ′ + λ2·τ_LCM needs it.

    It trains the modules that the LCM-LoRA has. Beside the output stands a work folder with checkpoints, log.csv,
    loss.svg and sheets of samples. Several GPUs: `accelerate launch -m lcmmerge train-style …`.

    \b
      lcmmerge train-style base.safetensors --data images -o style.safetensors
      lcmmerge train-style base --data images --caption "in papercut style" --steps 500 -o style.safetensors
    """
    quiet_libraries()
    from lcmmerge.distill.job import DIFFUSION
    from lcmmerge.distill.run import run

    snr_gamma = given.pop("snr_gamma")
    job = job_of(base, given, learning_rate=RATE, kind=DIFFUSION, snr_gamma=snr_gamma)
    show_result(run(job, output), output)
