"""The Python API: six functions, named as the commands are, with their options as keywords.

They print nothing. What a command would warn of is a Python warning (``UserWarning``), what a command would refuse is
an ``lcmmerge.LcmMergeError`` with the same message, and results are plain data with ``as_dict()``. References are as on
the command line: a path, ``hf://owner/repo[@revision]/file``, or ``zoo:…`` for what ships with lcmmerge. torch is
imported when the first weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from lcmmerge.errors import LcmMergeError
from lcmmerge.output import Warnings
from lcmmerge.sample import quiet_libraries

if TYPE_CHECKING:
    from lcmmerge.graphs.bundle import Exported
    from lcmmerge.merge.inspection import Inspection
    from lcmmerge.merge.plan import Plan
    from lcmmerge.merge.report import Report
    from lcmmerge.merge.request import Request
    from lcmmerge.recipe.manifest import Manifest
    from lcmmerge.studies.result import Result

Reference = str | os.PathLike[str]
Size = tuple[int, int]  # width, height in pixels


class Terms(TypedDict, total=False):
    """What is added to the base, beside the style.

    ``lcm``: the acceleration LoRA, by reference or by name (``hyper-8steps``); without it the architecture's official
    LCM-LoRA. ``accelerator``: what kind a file of ``lcm`` is. ``adapters``: further terms, each with its λ.
    ``tuned_from``: what a style that is a checkpoint was tuned from, else the base. ``block_weights``: term → factors
    on its λ per U-Net block, ``IN00-IN05=0.5,M00=0``. ``variant``: of a diffusers folder's weights, ``fp16``.
    ``config_from``: whose configs, scheduler and tokenizers a single file takes.
    """

    lcm: Reference
    accelerator: str
    adapters: Sequence[tuple[Reference, float]]
    tuned_from: Reference
    block_weights: Mapping[str, str]
    variant: str
    config_from: Reference


class Written(Terms, total=False):
    """How the checkpoint is written.

    ``layout``: the base's own where none is given. ``dtype``: fp32, fp16, bf16, fp8_e4m3fn, fp8_e5m2; each tensor's own
    where none is given. ``max_shard_size``: split files above it. ``drop_ema``: leave out an EMA copy.
    ``allow_unmatched``: merge what fits; ``Plan.unmatched`` and ``Report.unmatched`` list the rest.
    """

    layout: Literal["single-file", "diffusers"]
    dtype: str
    max_shard_size: int
    drop_ema: bool
    allow_unmatched: bool


class Drawing(TypedDict, total=False):
    """How a search draws. ``count``: images per prompt. ``guidance``: of the many-step teacher. ``size``: in pixels."""

    steps: int
    count: int
    seed: int
    size: Size
    batch: int
    guidance: float
    dtype: str
    device: str


def plan(
    base: Reference,
    style: Reference | None = None,
    *,
    lambdas: tuple[float, float] = (1.0, 1.0),
    output: Reference | None = None,
    **options: Unpack[Written],
) -> Plan:
    """What ``fuse`` would do, from headers alone: terms, coverage, files, sizes.

    Raises NotFoundError, FormatError, and IncompatibleError for a term that finds no home.

    >>> found = lcmmerge.plan("zoo:digits/base", "zoo:digits/neon.safetensors", lcm="zoo:digits/lcm.safetensors")
    >>> [(term.name, term.strength) for term in found.terms], found.base.arch.title
    ([('style', 1.0), ('lcm', 1.0)], 'Stable Diffusion 1')
    """
    from lcmmerge.merge import request

    planned, _ = request.plan(_written(base, style, lambdas, output, options), dry_run=True)
    return planned


def fuse(
    base: Reference,
    style: Reference | None = None,
    *,
    lambdas: tuple[float, float] = (1.0, 1.0),
    output: Reference | None = None,
    force: bool = False,
    device: str = "cpu",
    threads: int = 0,
    rounding_seed: int | None = None,
    hash_base: bool = False,
    **options: Unpack[Written],
) -> Report:
    """Write θ′ = θ_pre + λ1·τ′ + λ2·τ_LCM, with ``lambdas`` = (λ1, λ2), as one standalone checkpoint.

    ``output``: None names it after the inputs, in this folder. ``rounding_seed``: of stochastic rounding, None rounds
    to nearest. ``threads``: 0 is one per core, at most four. ``hash_base``: record the base's sha256 too. The report
    has ‖Δ‖/‖θ‖ of each term and sha256 of each file. Raises what ``plan`` does, OutputError, NumericError,
    NoEffectError, AlreadyFusedError.

    >>> report = lcmmerge.fuse(
    ...     "zoo:digits/base", "zoo:digits/neon.safetensors", lambdas=(0.8, 1.0),
    ...     lcm="zoo:digits/lcm.safetensors", accelerator="lcm", output="neon-lcm",
    ... )
    >>> [(row.term, row.strength) for row in report.rows]
    [('style', 0.8), ('lcm', 1.0)]
    """
    from lcmmerge.merge import request
    from lcmmerge.merge.fuse import check_output
    from lcmmerge.merge.fuse import fuse as run_fuse
    from lcmmerge.merge.outcome import Settings

    planned, configs = request.plan(_written(base, style, lambdas, output, options))
    _warn(planned.doubts)
    check_output(planned, configs, force=force)
    planned.fetch()
    settings = Settings(threads, device, rounding_seed, hash_base)
    return run_fuse(planned, configs=configs, settings=settings, force=force)


def inspect(reference: Reference, *, variant: str | None = None) -> Inspection:
    """What a checkpoint or an adapter is, from its headers alone, also on the Hub.

    Raises NotFoundError, FormatError.

    >>> lcmmerge.inspect("zoo:digits/neon.safetensors").as_dict()["kind"]
    'adapter'
    """
    from lcmmerge.merge.inspection import inspect as look
    from lcmmerge.tensors.remote import open_reference

    return look(open_reference(os.fspath(reference), variant=variant, scalars=True))


def search(
    base: Reference,
    style: Reference | None = None,
    *,
    prompts: Sequence[str],
    output: Reference,
    grid: Mapping[str, Sequence[float]] | None = None,
    optimize: int = 0,
    objective: str = "teacher",
    drawing: Drawing | None = None,
    **terms: Unpack[Terms],
) -> Result:
    """Draw every cell of a grid of λs (term → λs) and choose by measuring; ``output``: the study's folder.

    The same call goes on with a study where it ended. ``optimize``: how many cells Optuna adds. ``Result.scored`` has
    the rows, the best cell and the verdict against what a merge must beat; ``Result.merge`` is the request at the λs
    found, ``Result.command`` the command that bakes it. Raises what ``plan`` does, and LcmMergeError.

    >>> found = lcmmerge.search(
    ...     "zoo:digits/base", "zoo:digits/neon.safetensors", lcm="zoo:digits/lcm.safetensors", accelerator="lcm",
    ...     prompts=["a one", "a two"], grid={"style": [0.6, 1.0]}, output="study",
    ...     drawing={"steps": 1, "guidance": 2.5},
    ... )
    >>> found.merge.strengths in [(0.6, 1.0), (1.0, 1.0)]
    True
    """
    quiet_libraries()
    from lcmmerge.studies.request import SearchRequest
    from lcmmerge.studies.run import search as run_search

    merge = _merge(base, style, (1.0, 1.0), None, terms)
    axes = {term: tuple(values) for term, values in (grid or {}).items()}
    asked = SearchRequest(merge, Path(output), tuple(prompts), axes, optimize, objective=objective, **(drawing or {}))
    return run_search(asked, Warnings(quiet=True))


def export(
    model: Reference,
    style: Reference | None = None,
    *,
    output: Reference,
    lambdas: tuple[float, float] = (1.0, 1.0),
    to: str = "onnx",
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16",
    static: Sequence[Size] = (),
    fused: bool = True,
    parity: bool = False,
    force: bool = False,
    **terms: Unpack[Terms],
) -> Exported:
    """Write ONNX graphs over the weights of a model, or of a merge made on the way, as one folder.

    A model alone gets no LCM-LoRA. ``to``: ``tensorrt`` adds profiles, also ``static`` ones. ``fused``: also
    graphs with Attention nodes. ``parity``: compare every graph with its torch module. Needs ``lcmmerge[export]``.
    Raises what ``fuse`` does.

    >>> found = lcmmerge.export("zoo:digits/base", output="graphs", fused=False)
    >>> sorted(path.parent.name for path in found.folder.glob("*/model.onnx"))
    ['text_encoder', 'unet', 'vae_decoder', 'vae_encoder']
    """
    quiet_libraries()
    from lcmmerge.graphs.bundle import export as run_export
    from lcmmerge.graphs.request import ExportRequest, prepare

    strengths = lambdas if style or "lcm" in terms else (1.0, 0.0)
    merge = _merge(model, style, strengths, output, terms)
    asked = ExportRequest(merge, to, dtype, statics=tuple(static), fused=fused, parity=parity, force=force)
    prepared = prepare(asked)
    _warn(prepared.plan.doubts)
    return run_export(prepared, Warnings(quiet=True))


def run(
    recipe: Reference, output: Reference, *, sets: Sequence[str] = (), locked: bool = False, force: bool = False
) -> Manifest:
    """Make what a recipe file says in the folder ``output``, as far as it is not made yet.

    ``sets``: changes to the recipe, ``lambda.style=0.7``. ``locked``: only the sources of its lock. The manifest has
    every step with its files' sha256 and figures. Raises RecipeError with every fault of the file, LockError,
    QualityError once everything is written, and what the steps raise.

    >>> from pathlib import Path
    >>> _ = Path("neon.yaml").write_text('''
    ... version: 1
    ... sources:
    ...   base: zoo:digits/base
    ...   style: zoo:digits/neon.safetensors
    ...   lcm: zoo:digits/lcm.safetensors
    ... fuse: {base: base, terms: {style: 0.8, lcm: 1}}
    ... ''')
    >>> list(lcmmerge.run("neon.yaml", "out").steps)
    ['fuse neon', 'card neon']
    """
    from lcmmerge.recipe import runner
    from lcmmerge.recipe.loader import load

    asked = runner.Asked(Path(output), tuple(sets), locked, force)
    _, manifest = runner.run(load(Path(recipe), sets), asked, Warnings(quiet=True))
    return manifest


def _written(
    base: Reference, style: Reference | None, lambdas: tuple[float, float], output: Reference | None, options: Written
) -> Request:
    from dataclasses import replace

    from lcmmerge.merge.plan import Options
    from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

    dtype = options.get("dtype")
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise LcmMergeError(f"dtype {dtype!r}: unknown", f"one of {', '.join(OUTPUT_DTYPES)}")
    wanted = Options(
        OUTPUT_DTYPES[dtype] if dtype else None,
        options.get("layout"),
        options.get("drop_ema", False),
        options.get("max_shard_size"),
        options.get("allow_unmatched", False),
    )
    return replace(_merge(base, style, lambdas, output, options), options=wanted)


def _merge(
    base: Reference, style: Reference | None, lambdas: tuple[float, float], output: Reference | None, terms: Terms
) -> Request:
    from lcmmerge.merge.request import Request

    def text(reference: Reference | None) -> str | None:
        return None if reference is None else os.fspath(reference)

    return Request(
        os.fspath(base),
        None if output is None else Path(output),
        text(style),
        lambdas,
        text(terms.get("lcm")),
        tuple((os.fspath(reference), strength) for reference, strength in terms.get("adapters", ())),
        text(terms.get("tuned_from")),
        terms.get("block_weights", {}),
        terms.get("variant"),
        text(terms.get("config_from")),
        accelerator=terms.get("accelerator"),
    )


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        Warnings().warn(doubt)
