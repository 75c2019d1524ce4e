from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lcmmerge.cli.common import ADAPTER_DTYPE, output_options
from lcmmerge.cli.generate import Pixels
from lcmmerge.graphs.names import NVIDIA
from lcmmerge.output import Output, ratio, size
from lcmmerge.sample import quiet_libraries

if TYPE_CHECKING:
    from lcmmerge.graphs.bundle import Exported
    from lcmmerge.graphs.request import ExportRequest, Prepared
    from lcmmerge.merge.request import Request


@click.command(short_help="Write ONNX graphs over the weights of a model or a merge.")
@click.argument("model")
@click.argument("style", required=False)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="The export's folder.")
@click.option("--to", default="onnx", show_default=True, metavar="TARGET", help="onnx, or tensorrt: profiles too.")
@click.option("--dtype", type=ADAPTER_DTYPE, default="fp16", show_default=True, help="Of weights and graphs.")
@click.option("--vae-dtype", type=ADAPTER_DTYPE, help="[default: as --dtype; fp32 where a VAE overflows fp16]")
@click.option(
    "--lambda", "lambdas", nargs=2, type=float, default=(1.0, 1.0), show_default=True, metavar="λ1 λ2",
    help="Strength of the style and of the LCM-LoRA.",
)
@click.option("--lcm", metavar="REF|NAME", help="The acceleration LoRA to merge, as in `lcmmerge fuse`.")
@click.option("--accelerator", metavar="NAME", help="Which of `lcmmerge accelerators` MODEL or --lcm is drawn as.")
@click.option("--adapter", "adapters", type=(str, float), multiple=True, metavar="REF λ", help="One more term.")
@click.option("--tuned-from", metavar="REF", help="What a STYLE checkpoint was tuned from.  [default: MODEL]")
@click.option("--static", "statics", type=Pixels(), multiple=True, metavar="WxH", help="A size to build an engine for.")
@click.option("--fused/--no-fused", default=True, show_default=True, help="Also graphs with Attention nodes, opset 23.")
@click.option("--config-from", metavar="REF", help="Configs, scheduler and tokenizers for a single file.")
@click.option("--variant", help="Which weights of a diffusers folder, such as fp16.")
@click.option(
    "--cache", type=click.Path(path_type=Path), envvar="LCMMERGE_CACHE",
    help="Where graphs are kept for the next model like it.  [default: ~/.cache/lcmmerge/graphs]",
)
@click.option("--build", "engines", multiple=True, metavar="PROFILE", help="Build engines: dynamic, or a static WxH.")
@click.option(
    "--whole-pipeline", "whole", type=click.IntRange(1), metavar="N",
    help="Also one graph from token ids and noise to the image, its N steps in it. Experimental.",
)
@click.option(
    "--names", type=click.Choice([NVIDIA]),
    help="Also graphs with the names that NVIDIA's diffusion demo has, beside the others.",
)
@click.option("--parity", is_flag=True, help="Compare every graph with its torch module, at six sizes.")
@click.option("--force", is_flag=True, help="Replace the output; merge again what MODEL already holds.")
@click.option("--threads", type=click.IntRange(0), default=0, help="[default: one per core, at most four]")
@output_options
def export(output: Output, **given: Any) -> None:
    """Write MODEL, or STYLE and an acceleration LoRA merged into it, as one folder for three runtimes.

    diffusers loads it, ONNX Runtime runs its graphs, TensorRT builds engines of them. A graph points into the same
    weight files that diffusers reads, and takes any size that is a multiple of 8 pixels. It is made without its
    weights, and kept for the next model of the same configuration. `lcmmerge relambda` gives an export other λs.

    --whole-pipeline writes pipeline.onnx too, over the same weight files: token ids and normal noise in, uint8 images
    out. It is for models drawn without guidance by LCM, TCD, DDIM or Euler, and leaves nothing to do but tokenize. ONNX
    Runtime opens it much faster with fixed sizes, or with enable_mem_reuse off.

    --names nvidia writes model.nvidia.onnx beside each plain graph, a megabyte over the same weights. NVIDIA's demo has
    a folder for each graph and its weights: tensorrt/README.md says which commands copy them, and how much that is.

    \b
      lcmmerge export merged.safetensors -o export
      lcmmerge export base style.safetensors --lambda 0.8 1.0 --lcm lcm -o export
      lcmmerge export merged.safetensors --to tensorrt --static 768x512 -o export
    """
    quiet_libraries()
    from lcmmerge.graphs.bundle import export
    from lcmmerge.graphs.request import prepare

    request = _request(given)
    prepared = prepare(request)
    _warn(prepared, output)
    _show(export(prepared, output), output)


def _request(given: dict[str, Any]) -> ExportRequest:
    from lcmmerge.graphs.request import ExportRequest
    from lcmmerge.merge.outcome import Settings

    return ExportRequest(
        _merge(given),
        given["to"],
        given["dtype"],
        given["vae_dtype"],
        given["statics"],
        given["fused"],
        given["cache"],
        given["parity"],
        given["engines"],
        given["force"],
        Settings(given["threads"]),
        given["whole"],
        given["names"] == NVIDIA,
    )


def _merge(given: dict[str, Any]) -> Request:
    """A model alone gets no LCM-LoRA, and a style gets one, as `lcmmerge generate --live` has it."""
    from lcmmerge.merge.request import Request

    strengths = given["lambdas"]
    if not (given["style"] or given["lcm"]):
        if click.get_current_context().get_parameter_source("lambdas") != ParameterSource.DEFAULT:
            raise click.UsageError("--lambda is of a merge: give STYLE, or --lcm.")
        strengths = (1.0, 0.0)
    return Request(
        given["model"],
        given["target"],
        given["style"],
        strengths,
        given["lcm"],
        given["adapters"],
        given["tuned_from"],
        variant=given["variant"],
        config_from=given["config_from"],
        accelerator=given["accelerator"],
    )


def _warn(prepared: Prepared, output: Output) -> None:
    request, plan = prepared.request, prepared.plan
    for doubt in plan.doubts:
        output.warn(doubt)
    if request.merge.lcm and request.merge.strengths[1] and not plan.accelerator:
        lcm = request.merge.lcm
        output.warn(f"which accelerator {lcm} is cannot be told, so the scheduler stays: name it by --accelerator")
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
