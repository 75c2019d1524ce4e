"""What a recipe may hold: models, and the JSON schema that editors complete and check recipes by.

    version: 1
    sources: {base: hf://owner/repo, style: style.safetensors, lcm: hf://owner/repo/file.safetensors}
    fuse: {base: base, terms: {style: 0.8, lcm: 1.0}}

θ′ = θ_base + Σ λᵢτᵢ, the terms added in the order in which they stand.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lcmmerge.accelerators import ACCELERATORS
from lcmmerge.draw import SAMPLERS
from lcmmerge.draw.jobs import MOST_CELLS, MOST_IMAGES, MOST_STEPS
from lcmmerge.errors import OptionError
from lcmmerge.export.targets import targets
from lcmmerge.merge.methods import parse
from lcmmerge.merge.outcome import LARGEST
from lcmmerge.output import parse_size
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

SUPPORTED = 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Factor = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]  # of float32
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]


class _Strict(BaseModel):
    """No unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def as_source(value: Any) -> Any:
    return {"reference": value} if isinstance(value, str) else value


def as_term(value: Any) -> Any:
    return {"lambda": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def as_bytes(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def as_method(value: str) -> str:
    try:
        parse(value)
    except OptionError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None
    return value


class RecipeSource(_Strict):
    """Where a model or an adapter is."""

    reference: str = Field(
        min_length=1,
        description="A path (from the recipe's folder), hf://owner/repo[@revision][/file], or an accelerator's name.",
    )
    variant: str | None = Field(None, description="Which weights of a diffusers folder, such as fp16.")
    accelerator: Literal[tuple(ACCELERATORS)] | None = Field(  # type: ignore[valid-type]
        None, description="What kind of acceleration LoRA a file is, where its reference does not tell."
    )


class RecipeTerm(_Strict):
    """One task vector and its strength."""

    source: str | None = Field(None, description="A name of `sources`. Default: the term's own name.")
    strength: Factor = Field(1.0, alias="lambda", description="λ.")
    block_weights: dict[str, Factor] | None = Field(
        None, description="Factors on λ per U-Net block: {IN00-IN05: 0.5, M00: 0}. Others stay at 1."
    )
    tuned_from: str | None = Field(
        None, description="Of a whole checkpoint: what it was tuned from. Default: the base."
    )


class Fuse(_Strict):
    """One standalone checkpoint: θ′ = θ_base + Σ λτ."""

    base: str = Field(description="A name of `sources`.")
    terms: dict[
        Word, Annotated[RecipeTerm, BeforeValidator(as_term, json_schema_input_type=float | RecipeTerm)]
    ] = Field(
        min_length=1, description="Name → λ, or {source, lambda, block_weights, tuned_from}. Added in this order."
    )
    output: Name | None = Field(None, description="The output's name. Default: the recipe file's.")
    dtype: Literal[tuple(OUTPUT_DTYPES)] | None = Field(None, description="Default: each tensor's own.")  # type: ignore[valid-type]
    layout: Literal[SINGLE_FILE, DIFFUSERS] | None = Field(None, description="Default: the base's.")  # type: ignore[valid-type]
    method: Annotated[str, AfterValidator(as_method)] = Field(
        "add", description="How the terms are merged: add, or another with parameters, such as ties:density=0.3."
    )
    config_from: str | None = Field(
        None, description="The source with configs, scheduler and tokenizers, where the base is a single file."
    )
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = Field(0, description="Of the stochastic rounding.")
    max_shard_size: Annotated[int, BeforeValidator(as_bytes, json_schema_input_type=int | str)] | None = Field(
        None, gt=0, description="Split files above this size, such as 5GB."
    )
    drop_ema: bool = Field(False, description="Leave out a checkpoint's EMA copy.")
    allow_unmatched: bool = Field(False, description="Merge what fits, and list what does not.")


class DrawingSection(_Strict):
    """What is drawn, whatever with."""

    prompts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, description="What to draw.")
    count: int = Field(1, gt=0, le=MOST_IMAGES, description="Images per prompt.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of each prompt's first image; the next ones follow.")
    size: Annotated[str, Field(pattern=r"^\d+x\d+$")] | None = Field(
        None, description="WIDTHxHEIGHT in pixels. Default: what the model was trained at."
    )
    steps: int | None = Field(None, gt=0, le=MOST_STEPS, description="Default: the accelerator's.")
    batch: int = Field(1, gt=0, le=MOST_IMAGES, description="Images drawn at once.")


class Generate(DrawingSection):
    """Images of each output."""

    negative: str = Field("", description="What not to draw; without guidance it has no effect.")
    guidance: float | None = Field(None, ge=0, description="Up to 1 it is off. Default: the accelerator's.")
    scheduler: Literal[SAMPLERS] | None = Field(None, description="Default: the accelerator's.")  # type: ignore[valid-type]


class Search(DrawingSection):
    """The λs around those of `fuse`, measured against the style model's many-step images."""

    grid: dict[Word, Annotated[list[Factor], Field(min_length=1)]] = Field(
        min_length=1, description="Term → the λs to try; the one of `fuse` is tried too."
    )
    guidance: float | None = Field(None, ge=0, description="Of the teacher and of the baseline. Default: the model's.")
    blocks: dict[Word, dict[str, Annotated[list[Factor], Field(min_length=1)]]] = Field(
        {}, description="Term → U-Net blocks → factors on its λ there to try, 1 among them: {style: {IN: [0.5, 1]}}."
    )
    optimize: int = Field(0, ge=0, le=MOST_CELLS, description="How many cells Optuna chooses, within the grid.")
    front: bool = Field(False, description="Let it seek cells that are good in the objective or in style.")
    halving: int = Field(
        0, ge=0, le=MOST_CELLS, description="Draw only the best 1/N cells further than a few prompts; 3 is usual."
    )
    objective: str = Field("teacher", description="What is measured; with `=` the weights of a network to look with.")


Half = Literal["fp16", "bf16", "fp32"]


class Export(_Strict):
    """ONNX graphs of each output, over its weights: one folder for diffusers, ONNX Runtime and TensorRT."""

    to: Literal[tuple(targets())] = Field("onnx", description="What else is written.")  # type: ignore[valid-type]
    dtype: Half = Field("fp16", description="Of weights and graphs.")
    vae_dtype: Half | None = Field(None, description="Default: as `dtype`; fp32 where a VAE overflows fp16.")
    static: list[Annotated[str, Field(pattern=r"^\d+x\d+$")]] = Field(
        [], description="Sizes to build engines for, such as 768x512; the native one always is."
    )
    fused: bool = Field(True, description="Also graphs with Attention nodes, opset 23.")
    parity: bool = Field(True, description="Compare every graph with its torch module, at six sizes.")


class Bound(_Strict):
    """What a figure may be."""

    min: float | None = None
    max: float | None = None


class Check(_Strict):
    """Bounds on what the steps report; a miss ends the run with exit code 4."""

    coverage: Bound | None = Field(None, description="The share of each term's keys that found a home: 0 to 1.")
    relative: Bound | None = Field(None, description="‖λΔ‖ / ‖θ‖ of each term in each component.")
    signal: Bound | None = Field(None, description="‖λΔ‖ / ‖rounding error‖ of each term in each component.")
    weakest_signal: Bound | None = Field(None, description="The same, of the layer where it is least.")
    search_regret: Bound | None = Field(
        None, description="How much worse than the best of `search` the λs of `fuse` score, in standard deviations."
    )
    parity: Bound | None = Field(
        None, description="The largest error of each exported graph, as a share of its largest output."
    )
    bytes: Bound | None = Field(None, description="The size of all files of an output.")


Reading = Annotated[RecipeSource, BeforeValidator(as_source, json_schema_input_type=str | RecipeSource)]


class Recipe(_Strict):
    """How a few-step model is made."""

    version: Literal[1]
    description: str | None = None
    sources: dict[Word, Reading] = Field(min_length=1, description="Name → reference, or {reference, variant}.")
    fuse: Fuse
    matrix: dict[str, Annotated[list[str | float | bool], Field(min_length=1)]] | None = Field(
        None, min_length=1,
        description="One output per combination: `lambda.TERM` or a path such as fuse.terms.style.source → its values.",
    )  # fmt: skip
    search: Search | None = None
    generate: Generate | None = None
    export: Export | None = None
    check: Check | None = None
    publish: Annotated[str, Field(pattern=r"^hf://[\w.-]+/[\w.-]+$")] | None = Field(
        None, description="The Hub repository that `lcmmerge run --publish` uploads to."
    )


def json_schema() -> str:
    """The text of the shipped ``schema.json``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = head | Recipe.model_json_schema(by_alias=True) | {"title": "lcmmerge recipe"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
