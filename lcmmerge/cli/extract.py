from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import ADAPTER_DTYPE, RANK, Number, few, output_options, show_layers, target_options
from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

if TYPE_CHECKING:
    from lcmmerge.lora.extract import Extracted


@click.command(short_help="Turn a fine-tuned checkpoint into a LoRA: τ = θ_ft − θ_base.")
@click.argument("tuned", type=REFERENCE)
@click.argument("base", type=REFERENCE)
@target_options
@click.option("--rank", type=RANK, default=64, show_default=True, help="Of every module, or at most.")
@click.option(
    "--energy", type=Number(0, 1, min_open=True), metavar="SHARE",
    help="Only as much rank per module as keeps this share of ‖Δ‖², such as 0.99.",
)  # fmt: skip
@click.option("--dtype", type=ADAPTER_DTYPE, default="fp16", show_default=True)
@click.option(
    "--full/--no-full", default=None,
    help="Norms and biases too, which not every program for U-Nets reads.  [default: of transformers]",
)  # fmt: skip
@output_options
def extract(
    tuned: str, base: str, target: Path, rank: int, energy: float | None, dtype: str, full: bool | None, force: bool,
    output: Output,
) -> None:  # fmt: skip
    """Write what TUNED has learnt since BASE as a LoRA, by a randomised singular value decomposition.

    \b
      lcmmerge extract tuned.safetensors base.safetensors -o style.safetensors --rank 64
    """
    from lcmmerge.archs import identify
    from lcmmerge.lora.extract import ExtractSettings, tuned_of
    from lcmmerge.lora.extract import extract as run
    from lcmmerge.tensors.remote import open_reference
    from lcmmerge.tensors.targets import joined, safetensors_name

    origin = identify(open_reference(base, "base", pickles=True))
    term = tuned_of(open_reference(tuned, "tuned checkpoint", pickles=True), origin)
    settings = ExtractSettings(rank, energy, OUTPUT_DTYPES[dtype], full)
    total = sum(parameter.info.nbytes for parameter in origin.parameters.values())
    target = safetensors_name(target, joined(tuned, base))
    with output.progress("extract", total) as progress:
        found = run(term, origin, target, settings, force=force, progress=progress)
    if output.as_json:
        output.json(found.as_dict())
    else:
        _show(found, output)


def _show(found: Extracted, output: Output) -> None:
    if output.verbose:
        show_layers(found.layers, output)
    for doubt in found.doubts:
        output.warn(doubt)
    if found.left_out:
        output.warn(
            f"{len(found.left_out)} changed parameters are left out (norms and biases come with --full): "
            f"{few(found.left_out, output)}"
        )
    output.text(f"{found.output}  {len(found.layers)} parameters, {found.energy:.2%} of ‖Δ‖² kept")
