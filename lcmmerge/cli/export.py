from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lcmmerge.cli.candidates import REFERENCE, NameType, targets
from lcmmerge.cli.common import ADAPTER_DTYPE, STEPS, Pixels, output_options
from lcmmerge.cli.options import (
    adapter_option,
    alpha_option,
    config_option,
    held_options,
    is_file,
    lambda_option,
    merge_of,
    method_option,
    named,
    prediction_option,
    threads_option,
    tuned_from_option,
    variant_option,
)
from lcmmerge.draw import quiet_libraries
from lcmmerge.export.names import NVIDIA
from lcmmerge.extras import check_installed
from lcmmerge.output import Output, ratio, size

if TYPE_CHECKING:
    from lcmmerge.export.bundle import Exported
    from lcmmerge.export.request import PreparedExport


@click.command(short_help="Write ONNX graphs over the weights of a model or a merge.")
@click.argument("model", type=REFERENCE)
@click.argument("style", type=REFERENCE, required=False)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="The export's folder.")
@click.option(
    "--to", type=NameType(targets), default="onnx", show_default=True, metavar="TARGET",
    help="onnx, or tensorrt: profiles too.",
)
@click.option("--dtype", type=ADAPTER_DTYPE, default="fp16", show_default=True, help="Of weights and graphs.")
@click.option("--vae-dtype", type=ADAPTER_DTYPE, help="[default: as --dtype; fp32 where a VAE overflows fp16]")
@lambda_option("style and of the acceleration LoRA")
@held_options("STYLE or --lambda")
@adapter_option
@alpha_option
@tuned_from_option("MODEL")
@method_option
@click.option("--static", "statics", type=Pixels(), multiple=True, metavar="WxH", help="A size to build an engine for.")
@click.option("--fused/--no-fused", default=True, show_default=True, help="Also graphs with Attention nodes, opset 23.")
@config_option
@prediction_option
@variant_option
@click.option(
    "--cache", type=click.Path(path_type=Path), envvar="LCMMERGE_CACHE",
    help="Where graphs are kept for the next model like it.  [default: ~/.cache/lcmmerge/graphs]",
)
@click.option("--build", "engines", multiple=True, metavar="PROFILE", help="Build engines: dynamic, or a static WxH.")
@click.option(
    "--whole-pipeline", "whole", type=STEPS, metavar="N",
    help="Also one graph from token ids and noise to the image, its N steps in it. Experimental.",
)
@click.option(
    "--names", type=click.Choice([NVIDIA]),
    help="Also graphs with the names that NVIDIA's diffusion demo has, beside the others.",
)
@click.option("--parity", is_flag=True, help="Compare every graph with its torch module, at six sizes.")
@click.option("--force", is_flag=True, help="Replace the output; merge again what MODEL already holds.")
@threads_option
@output_options
def export(
    model: str, style: str | None, target: Path, to: str, dtype: str, vae_dtype: str | None,
    lambdas: tuple[float, float] | None, accelerator: Sequence[str], lcm: Sequence[str],
    adapters: Sequence[tuple[str, float]], alphas: Mapping[str, float], tuned_from: str | None, method: str,
    statics: tuple[tuple[int, int], ...], fused: bool, config_from: str | None, prediction: str | None,
    variant: str | None, cache: Path | None, engines: tuple[str, ...], whole: int | None, names: str | None,
    parity: bool, force: bool, threads: int, output: Output,
) -> None:  # fmt: skip
    """Write MODEL, or STYLE and an acceleration LoRA merged into it, as one folder for three runtimes.

    diffusers loads it, ONNX Runtime runs its graphs, TensorRT builds engines of them. A graph points into the same
    weight files that diffusers reads, and takes any size that is a multiple of 8 pixels. It is made without its
    weights, and kept for the next model of the same configuration. `lcmmerge relambda` gives an export other λs.

    --whole-pipeline writes pipeline.onnx too, over the same weight files: token ids and normal noise in, uint8 images
    out. It is for models drawn without guidance by LCM, TCD, DDIM or Euler, and leaves nothing to do but tokenize.

    --names nvidia writes model.nvidia.onnx beside each plain graph, a megabyte over the same weights. NVIDIA's demo has
    a folder for each graph and its weights: tensorrt/README.md says which commands copy them, and how much that is.

    \b
      lcmmerge export merged.safetensors -o export
      lcmmerge export base style.safetensors --lambda 0.8 1.0 --accelerator lcm -o export
      lcmmerge export merged.safetensors --to tensorrt --static 768x512 -o export
    """
    check_installed("export")
    quiet_libraries()
    from lcmmerge.bake.outcome import Settings
    from lcmmerge.export.bundle import export
    from lcmmerge.export.request import ExportRequest, prepare
    from lcmmerge.merge.spec import Written

    given = (*lcm, *accelerator)
    merges = style or lcm or (accelerator and lambdas) or any(map(is_file, accelerator))
    if not merges:  # a model alone gets no LCM-LoRA, and a style gets one
        if lambdas:
            raise click.UsageError("--lambda is of a merge: give STYLE, or --accelerator.")
        lambdas = (1.0, 0.0)
    merge = merge_of(
        model, style, lambdas, accelerators=given if merges else (), adapters=adapters,
        alphas=alphas, tuned_from=tuned_from, variant=variant, config_from=config_from, prediction=prediction,
        output=Written(target), method=method,
    )  # fmt: skip
    prepared = prepare(
        ExportRequest(
            merge, to, dtype, vae_dtype, statics, fused, cache, parity, engines, force, Settings(threads), whole,
            names == NVIDIA, named(given),
        )
    )  # fmt: skip
    _warn(prepared, output)
    _show(export(prepared, output), output)


def _warn(prepared: PreparedExport, output: Output) -> None:
    request, plan = prepared.request, prepared.plan
    for doubt in (*plan.doubts, *plan.obligations):
        output.warn(doubt)
    fast = request.merge.accelerated
    if fast and fast.source and fast.strength and not plan.accelerator:
        file = fast.source.reference
        output.warn(f"which accelerator {file} is cannot be told, so the scheduler stays: name it by --accelerator")
    if prepared.dtypes["vae_decoder"] != request.dtype and not request.vae_dtype:
        output.note("The VAE is in fp32: it overflows fp16, by its config. --vae-dtype fp16 is for one that does not.")


def _show(exported: Exported, output: Output) -> None:
    from dataclasses import asdict

    manifest = exported.manifest
    if output.as_json:
        output.json({"output": str(exported.folder), **asdict(manifest)})
        return
    output.table(
        "",
        ("term", "component", "λ", "parameters", "‖Δ‖/‖θ‖"),
        [
            (row.term, row.component, f"{row.strength:g}", f"{row.parameters} of {row.of}", ratio(row.relative))
            for row in exported.rows
        ],
        numbers=3,
    )
    output.table(
        "",
        ("graph", "opset", "dtype", "weights"),
        [
            (graph["path"], graph["opset"], item["dtype"], size(manifest.files[item["weights"]]["bytes"]))
            for item in manifest.components.values()
            for graph in item["graphs"].values()
        ],
        numbers=3,
    )
    for graph in manifest.whole.get("graphs", {}).values():
        output.text(f"{graph['path']}  opset {graph['opset']}, {len(manifest.whole['timesteps'])} steps and the VAE")
    output.text(f"{exported.folder}  {size(sum(said['bytes'] for said in manifest.files.values()))}")
