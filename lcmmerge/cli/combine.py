from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import ADAPTER_DTYPE, RANK, STRENGTH, output_options, show_layers, target_options
from lcmmerge.cli.options import once_each
from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES


@click.command(
    short_help="Add LoRAs up into one: Σ λᵢτᵢ.",
    context_settings={"ignore_unknown_options": True},  # so that -0.5 is a number
)
@click.argument("terms", type=REFERENCE, nargs=-1, required=True, metavar="ADAPTER λ [ADAPTER λ]…")
@target_options
@click.option("--rank", type=RANK, help="Recompress to this rank.  [default: exact, the sum of ranks]")
@click.option("--dtype", type=ADAPTER_DTYPE, help="[default: the widest of the adapters']")
@click.option(
    "--alpha", "alphas", nargs=2, type=(str, float), multiple=True, metavar="ADAPTER NUMBER",
    help="The alpha that an adapter's publisher states, where its file has none: `style 64`, by its file name without "
    "suffix.",
)
@click.option("--base", type=REFERENCE, metavar="REF", help="The model they are for, where their names do not tell.")
@output_options
def combine(
    terms: tuple[str, ...], target: Path, rank: int | None, dtype: str | None, alphas: Sequence[tuple[str, float]],
    base: str | None, force: bool, output: Output,
) -> None:  # fmt: skip
    """Add LoRAs, each times its λ, up into one LoRA. It is exact: ranks are set side by side.

    \b
      lcmmerge combine style.safetensors 0.8 lcm.safetensors 1.0 -o both.safetensors
      lcmmerge combine a.safetensors 1 b.safetensors -0.5 --rank 32 -o c.safetensors
    """
    from lcmmerge.archs import identify
    from lcmmerge.errors import OptionError
    from lcmmerge.lora.alignment import term_of
    from lcmmerge.lora.combine import CombineSettings
    from lcmmerge.lora.combine import combine as run
    from lcmmerge.tensors.remote import open_reference
    from lcmmerge.tensors.targets import joined, safetensors_name

    pairs = _pairs(terms)
    model = identify(open_reference(base, "base", pickles=True)) if base else None
    given = once_each(alphas, "--alpha")
    stems = [Path(reference).stem for reference, _ in pairs]
    if strangers := sorted(given.keys() - {*stems}):
        raise OptionError(f"an alpha for {strangers[0]!r}: no such adapter", f"the adapters are {', '.join(stems)}")
    opened = [
        term_of(open_reference(reference, "adapter", pickles=True), strength, given.get(stem))
        for (reference, strength), stem in zip(pairs, stems, strict=True)
    ]
    for term in opened:
        for doubt in term.file.doubts:
            output.warn(f"{term.path.name}: {doubt}")
    settings = CombineSettings(rank, OUTPUT_DTYPES[dtype] if dtype else None)
    target = safetensors_name(target, joined(*(reference for reference, _ in pairs)))
    found = run(opened, target, settings, model, force=force)
    if output.as_json:
        output.json(found.as_dict())
        return
    if output.verbose:
        show_layers(found.layers, output)
    output.text(f"{found.output}  {len(found.layers)} parameters, {found.energy:.2%} of ‖Δ‖² kept")


def _pairs(terms: tuple[str, ...]) -> list[tuple[str, float]]:
    references, strengths = terms[::2], terms[1::2]
    try:
        pairs = list(zip(references, map(float, strengths), strict=True))
    except ValueError:
        raise click.UsageError("write each adapter with its λ: style.safetensors 0.8 lcm.safetensors 1") from None
    return [(reference, STRENGTH.convert(strength, None, None)) for reference, strength in pairs]
