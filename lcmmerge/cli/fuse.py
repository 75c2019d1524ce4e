from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.candidates import REFERENCE, NameType, encodings
from lcmmerge.cli.common import DTYPE, Bytes, TargetType, few, output_options
from lcmmerge.cli.options import (
    adapter_option,
    alpha_option,
    arithmetic_options,
    expert_option,
    lambda_option,
    made_from_option,
    merge_of,
    merged_option,
    method_option,
    once_each,
    prediction_option,
    qkv_rows_option,
    tuned_from_option,
    variant_option,
)
from lcmmerge.output import Output, ratio, share, size
from lcmmerge.tensors.dtypes import ERROR_AWARE, NEAREST, OUTPUT_DTYPES, ROUNDINGS, STOCHASTIC

if TYPE_CHECKING:
    from lcmmerge.bake.outcome import Measured
    from lcmmerge.bake.report import Report
    from lcmmerge.merge.plan import Plan

SWALLOWED = 3  # below this ratio of ‖Δ‖ to the rounding error, the dtype keeps little of a term


@click.command(short_help="Merge a style and an acceleration LoRA into a checkpoint.")
@click.argument("base", type=REFERENCE)
@click.argument("style", type=REFERENCE, required=False)
@lambda_option("style and of the acceleration LoRA")
@merged_option
@adapter_option
@tuned_from_option("BASE")
@made_from_option
@method_option
@click.option(
    "--block-weights", "weights", nargs=2, multiple=True, metavar="TERM SPEC",
    help="Factors on a term's λ per U-Net block: `style IN00-IN05=0.5,M=0,OUT=1`, or one number per block. "
    "TERM: style, lcm, or an adapter's file name without its suffix.",
)
@expert_option
@alpha_option
@click.option(
    "-o", "--output", "target", type=TargetType(),
    help="The file to write, or a folder for it that is there.  [default: BASE-STYLE-lcm, here]",
)
@click.option("--layout", type=click.Choice(["single-file", "diffusers"]), help="[default: the base's]")
@click.option("--dtype", type=DTYPE, help="[default: each tensor's own]")
@click.option(
    "--encoding", type=NameType(encodings), metavar="NAME",
    help="How numbers are stored: a dtype, as with --dtype; fp8_scaled, int8_convrot, mxfp8 or nvfp4, as ComfyUI reads "
    "them, of the large linears in the denoiser's blocks; none, to undo such and bitsandbytes'; or what a package "
    "adds.  [default: as in BASE]",
)
@click.option(
    "--like", type=REFERENCE, metavar="REF",
    help="A quantised file of the same base: every tensor is stored as it is there.",
)
@click.option(
    "--rounding", type=click.Choice(ROUNDINGS), default=NEAREST, show_default=True,
    help="stochastic keeps small changes on average; error-aware chooses the scales of blocks or rows that lose least, "
    "in some ten times the time that rounding takes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the stochastic rounding.")
@click.option(
    "--config-from", type=REFERENCE, metavar="REF",
    help="Configs, scheduler, tokenizers for --layout diffusers.",
)
@click.option(
    "--parts-from", type=REFERENCE, metavar="REF",
    help="The checkpoint that the VAE, text encoders or layers are taken from which BASE lacks.",
)
@prediction_option
@qkv_rows_option
@variant_option
@click.option("--max-shard-size", "shard", type=Bytes(), help="Split files above this size, such as 5GB.")
@click.option("--drop-ema", is_flag=True, help="Leave out a checkpoint's EMA copy.")
@click.option("--mend-position-ids", is_flag=True, help="Write damaged position_ids of text encoders as 0, 1, 2 …")
@click.option("--allow-unmatched", is_flag=True, help="Merge what fits, and list what does not.")
@click.option("--hash-base", is_flag=True, help="Record the base's sha256 too, which reads it once more.")
@click.option("--accept-loss", is_flag=True, help="Merge even where a quantised BASE would keep less than 90 % of it.")
@click.option("--force", is_flag=True, help="Replace the output; fuse again what the base already holds.")
@arithmetic_options
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@output_options
def fuse(
    base: str, style: str | None, lambdas: tuple[float, float] | None, accelerator: Sequence[str],
    adapters: Sequence[tuple[str, float]], tuned_from: str | None, made_from: str | None, method: str,
    weights: Sequence[tuple[str, str]], experts: Mapping[str, str], alphas: Mapping[str, float],
    target: Path | None, layout: str | None, dtype: str | None, encoding: str | None, like: str | None,
    rounding: str, seed: int,
    config_from: str | None, parts_from: str | None, prediction: str | None, qkv_rows: str | None,
    variant: str | None, shard: int | None, drop_ema: bool, mend_position_ids: bool, allow_unmatched: bool,
    hash_base: bool, accept_loss: bool, force: bool, device: str, threads: int, dry_run: bool, output: Output,
) -> None:  # fmt: skip
    """Merge STYLE and an acceleration LoRA into BASE, and write one standalone checkpoint.

    BASE is a checkpoint (.safetensors, .ckpt, a shard index, a diffusers folder), STYLE a LoRA or one of its
    relatives, or a whole fine-tuned checkpoint. Without STYLE, the acceleration LoRA alone is merged, at λ2. Everything
    that STYLE holds must find its place in BASE; if it does not, nothing is written and the exit code is 3.

    \b
      lcmmerge fuse base.safetensors style.safetensors --lambda 0.8 1.0
      lcmmerge fuse base.safetensors style.safetensors --accelerator hyper-8steps
      lcmmerge fuse base.safetensors --accelerator hyper.safetensors --accelerator hyper-8steps -o fast.safetensors
      lcmmerge fuse base.safetensors style.safetensors --method ties:density=0.3
      lcmmerge fuse base.safetensors style.safetensors --method norm_cap:1.2
      lcmmerge fuse base.safetensors style.safetensors --layout diffusers --dtype fp16

    An inpainting model of your tuned one is the published inpainting model with what yours learnt:

    \b
      lcmmerge fuse inpainting.safetensors tuned.safetensors --tuned-from base.safetensors --lambda 1 0
    """
    from lcmmerge.bake.fuse import check_output, fuse
    from lcmmerge.bake.loss import check_kept, estimated
    from lcmmerge.bake.outcome import Settings
    from lcmmerge.merge.plan import plan
    from lcmmerge.merge.spec import Source, Written, stored_as

    if not style and lambdas:
        output.note(f"No STYLE is given, so λ1 = {lambdas[0]:g} has no term.")
    merge = merge_of(
        base, style, lambdas, accelerators=accelerator, adapters=adapters, tuned_from=tuned_from, made_from=made_from,
        block_weights=once_each(weights, "--block-weights"), experts=experts, alphas=alphas, variant=variant,
        config_from=config_from,
        output=Written(
            target, layout, stored_as(dtype, encoding), shard, drop_ema, seed if rounding == STOCHASTIC else None,
            mend_position_ids, like=Source(like) if like else None, error_aware=rounding == ERROR_AWARE,
        ),
        allow_unmatched=allow_unmatched, method=method, prediction=prediction, parts_from=parts_from,
        qkv_rows=qkv_rows,
    )  # fmt: skip
    planned = plan(merge, dry_run=dry_run)
    for doubt in planned.doubts:
        output.warn(doubt)
    if dry_run:
        check_output(planned, force=force)
        kept = None if planned.download else estimated(planned)
        _show_plan(planned, kept, output)
        if not accept_loss:
            check_kept(planned, kept)
    else:
        if not any(term.strength for term in planned.terms):
            output.warn("every λ is 0: the weights stay the base's")
        settings = Settings(threads, device, hash_base)
        report = fuse(planned, settings=settings, force=force, accept_loss=accept_loss, output=output)
        _show_report(report, planned.merge.output.encoding, output)
    _show_sampling(planned, output)


def _show_plan(plan: Plan, kept: Measured | None, output: Output) -> None:
    """``kept``: what rounding would keep of the change, where the base is quantised already."""
    from lcmmerge.refs import name_of

    if output.as_json:
        output.json(plan.as_dict() | ({"kept": kept.gain} if kept else {}))
        return
    output.text(f"{plan.base.arch.title}, {plan.base.purpose}, {plan.base.layout}: {plan.base.source.path}")
    output.text(f"The base {plan.base.prediction}.")
    if not plan.merge.linear:
        output.text(f"Merged by {plan.merge.method_text}.")
    output.table(
        "Terms",
        ("term", "component", "file", "λ", "parameters"),
        [
            (term.name, row.component, name_of(term.path), f"{term.strength:g}", row.parameters)
            for row in plan.coverage
            for term in [plan.terms[row.term]]
        ],
        numbers=2,
    )
    _show_lent({name_of(plan.lender.source.path): plan.lent} if plan.lender else {}, output)
    output.table(
        f"Would write {plan.result} ({size(plan.nbytes)})",
        ("file", "tensors", "size"),
        [(file.path, len(file.tensors), size(file.nbytes)) for file in plan.files],
        numbers=2,
    )
    stored = ", ".join(f"{count} in {encoding}" for encoding, count in plan.encodings.items())
    output.text(f"Tensors: {stored}.")
    if kept:
        output.text(f"The base is quantised: about {share(kept.gain)} of the change would be kept.")
    if plan.download:
        output.text(f"Would download {size(plan.download)}.")
    _show_left_out({plan.terms[index].name: keys for index, keys in plan.unmatched.items()}, plan.dropped, output)


def _show_report(report: Report, encoding: str | Mapping[str, str] | None, output: Output) -> None:
    """``encoding``: what was asked for. Who chose blocks of few bits is told what they kept, not to choose a dtype."""
    if output.as_json:
        output.json(report.as_dict())
        return
    output.table(
        "",
        ("term", "component", "λ", "parameters", "‖Δ‖/‖θ‖", "signal/rounding", "kept"),
        [
            (
                row.term,
                row.component,
                f"{row.strength:g}",
                f"{row.parameters} of {row.of}",
                ratio(row.relative),
                ratio(row.signal),
                share(row.kept),
            )
            for row in report.rows
        ],
        numbers=5,
    )
    _show_rounding(report, output)
    for row in report.rows:
        if row.signal < SWALLOWED and encoding in (None, *OUTPUT_DTYPES):
            output.warn(
                f"rounding drowns much of {row.term} in {row.component} (weakest layer: {row.weakest}, "
                f"{ratio(row.weakest_signal)}); try --dtype fp16 or fp32, or --rounding stochastic"
            )
    _show_lent(report.lent, output)
    if output.verbose:
        _show_layers(report, output)
    _show_left_out(report.unmatched, report.dropped, output)
    output.text(f"{report.output}  {size(report.nbytes)}" + ("" if report.method == "add" else f"  {report.method}"))


def _show_rounding(report: Report, output: Output) -> None:
    from lcmmerge.bake.report import kept_in_words

    rounding = report.as_dict()["rounding"]
    if text := kept_in_words(rounding):
        output.text(text)
    if "gained" in rounding:
        output.text(f"The error of rounding is {share(rounding['gained'])} less than to nearest.")


def _show_lent(lent: Mapping[str, Mapping[str, int]], output: Output) -> None:
    for file, components in lent.items():
        for component, parameters in components.items():
            output.text(f"{parameters} parameters of the {component} are those of {file}.")


def _show_sampling(plan: Plan, output: Output) -> None:
    for doubt in plan.scheduler_doubts:
        output.warn(doubt)
    if plan.accelerator:
        output.note(f"Draw with {plan.accelerator.sampling}.")
    for obligation in plan.obligations:
        output.warn(obligation)


def _show_layers(report: Report, output: Output) -> None:
    output.table(
        "Layers",
        ("parameter", "‖Δ‖/‖θ‖", "signal", "kept"),
        [
            (layer.name, ratio(layer.relative), ratio(layer.signal), share(layer.measured.gain))
            for layer in report.layers
            if layer.squares
        ],
        numbers=3,
    )


def _show_left_out(unmatched: Mapping[str, Sequence[str]], dropped: Sequence[str], output: Output) -> None:
    """Nothing is dropped silently."""
    for name, keys in unmatched.items():
        output.warn(f"{len(keys)} keys of {name} have no home and are left out: {few(keys, output)}")
    if dropped:
        output.note(f"Left out of the base: {len(dropped)} tensors: {few(dropped, output)}")
