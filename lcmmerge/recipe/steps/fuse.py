"""One standalone checkpoint for each output: what every other step is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from lcmmerge.accelerators import Accelerator, usual_strength
from lcmmerge.archs import Model, identify
from lcmmerge.archs.prediction import CHOICES
from lcmmerge.archs.rows import ORDERS
from lcmmerge.bake.fuse import fuse
from lcmmerge.bake.outcome import Settings
from lcmmerge.errors import OptionError, RecipeError
from lcmmerge.merge.methods import parse
from lcmmerge.merge.plan import plan
from lcmmerge.merge.spec import ADD, Merge, Source, Term, Written, stored_as
from lcmmerge.output import parse_size
from lcmmerge.recipe.sources import Input
from lcmmerge.recipe.steps.base import Build, Step, StepWork, step_key
from lcmmerge.recipe.values import Factor, Name, Strict, Word
from lcmmerge.refs import name_of
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.dtypes import ERROR_AWARE, NEAREST, OUTPUT_DTYPES, ROUNDINGS, STOCHASTIC
from lcmmerge.tensors.made import files_at


def as_term(value: Any) -> Any:
    return {"lambda": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def as_expert(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def spread(terms: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Each term: its name, where among ``terms`` it stands, and its mapping.

    What has a source for each expert is a term for each, ``lcm-transformer``, with all that stands beside the sources.
    """
    for name, given in terms.items():
        term = as_term(given)
        if experts := _experts(term):
            common = {key: value for key, value in term.items() if key not in experts}
            for expert in experts:
                yield f"{name}-{expert}", (name, expert), {**common, **as_expert(term[expert]), "expert": expert}
        else:
            yield name, (name,), term


def _experts(term: Any) -> list[str]:
    """The components that a term has sources for: two keys or more that are none of a term's own."""
    if not isinstance(term, dict) or "expert" in term:
        return []
    known = {field.alias or name for name, field in RecipeTerm.model_fields.items()}
    others = {key: as_expert(value) for key, value in term.items() if key not in known}
    experts = [key for key, value in others.items() if isinstance(value, dict) and "expert" not in value]
    return experts if len(experts) > 1 else []


def as_terms(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    for name, term in value.items():
        for expert in _experts(term):
            if common := [key for key in as_expert(term[expert]) if key in term]:
                raise ValueError(f"{name}: {common[0]} is given for every expert, and for {expert}: give it once")
    names = [name for name, _, _ in spread(value)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two terms are called {twice[0]!r}")
    return {name: term for name, _, term in spread(value)}


def as_bytes(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def as_method(value: str) -> str:
    try:
        parse(value)
    except OptionError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None
    return value


class ExpertTerm(Strict):
    """One task vector and its strength, of one expert."""

    source: str | None = Field(None, description="A name of `sources`. Default: the term's own name.")
    strength: Factor | None = Field(
        None, alias="lambda", description="λ. Default: an accelerator's usual one, of others 1."
    )
    block_weights: dict[str, Factor] | None = Field(
        None, description="Factors on λ per U-Net block: {IN00-IN05: 0.5, M: 0}. Others stay at 1."
    )
    tuned_from: str | None = Field(
        None, description="Of a whole checkpoint: what it was tuned from. Default: the base."
    )
    alpha: Annotated[Factor, Field(gt=0)] | None = Field(
        None, description="The alpha that an adapter's publisher states, where its file has none."
    )


class RecipeTerm(ExpertTerm):
    """One task vector and its strength."""

    expert: str | None = Field(
        None, description="The component that it is for, where the base has several denoisers: transformer_2."
    )


class RecipeExperts(ExpertTerm):
    """A source for each expert, {transformer: high, transformer_2: low}, and what is said of all, or of one."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | ExpertTerm]


Terms = dict[Word, float | RecipeTerm | RecipeExperts]  # as they are written


class Fuse(Step):
    """One standalone checkpoint: θ′ = θ_base + Σ λτ."""

    target: ClassVar = "{}"
    order: ClassVar = 0

    base: str = Field(description="A name of `sources`.")
    terms: Annotated[
        dict[Word, RecipeTerm], BeforeValidator(as_terms, json_schema_input_type=Annotated[Terms, Field(min_length=1)])
    ] = Field(
        min_length=1,
        description="Name → λ, or {source, lambda, block_weights, tuned_from, expert, alpha}, or a source for each "
        "expert: {transformer: high, transformer_2: low}. Added in this order.",
    )
    output: Name | None = Field(None, description="The output's name. Default: the recipe file's.")
    dtype: Literal[tuple(OUTPUT_DTYPES)] | None = Field(None, description="Default: each tensor's own.")  # type: ignore[valid-type]
    encoding: str | None = Field(None, description="How numbers are stored: a dtype, or what `--encoding` names.")
    like: str | None = Field(
        None, description="The source, a quantised file of the same base, in whose encodings tensors are stored."
    )
    layout: Literal[SINGLE_FILE, DIFFUSERS] | None = Field(None, description="Default: the base's.")  # type: ignore[valid-type]
    method: Annotated[str, AfterValidator(as_method)] = Field(
        "add", description="How the terms are merged: add, or another with parameters, such as ties:density=0.3."
    )
    config_from: str | None = Field(
        None, description="The source with configs, scheduler and tokenizers, where the base is a single file."
    )
    parts_from: str | None = Field(
        None, description="The source of the VAE, text encoders or layers that the base lacks."
    )
    prediction: Literal[tuple(CHOICES)] | None = Field(  # type: ignore[valid-type]
        None, description="What the base predicts, where its files do not say it."
    )
    qkv_rows: Literal[ORDERS] | None = Field(  # type: ignore[valid-type]
        None, description="How a fused q, k and v of the base lie, one below another or head by head."
    )
    rounding: Literal[ROUNDINGS] = NEAREST  # type: ignore[valid-type]
    seed: int = Field(0, description="Of the stochastic rounding.")
    max_shard_size: Annotated[int, BeforeValidator(as_bytes, json_schema_input_type=int | str)] | None = Field(
        None, gt=0, description="Split files above this size, such as 5GB."
    )
    drop_ema: bool = Field(False, description="Leave out a checkpoint's EMA copy.")
    mend_position_ids: bool = Field(False, description="Write damaged position_ids of text encoders as 0, 1, 2 …")
    allow_unmatched: bool = Field(False, description="Merge what fits, and list what does not.")
    accept_loss: bool = Field(False, description="Merge even where a quantised base would keep less than 90 % of it.")

    @property
    def roles(self) -> dict[str, str]:
        """``base``, ``terms.style``, ``terms.style.tuned_from``, ``config_from`` … → a name of ``sources``."""
        roles = {"base": self.base}
        for name, term in self.terms.items():
            roles[f"terms.{name}"] = term.source or name
            if term.tuned_from:
                roles[f"terms.{name}.tuned_from"] = term.tuned_from
        others = {"config_from": self.config_from, "parts_from": self.parts_from, "like": self.like}
        return roles | {role: name for role, name in others.items() if name}

    @property
    def rounding_seed(self) -> int | None:
        return self.seed if self.rounding == STOCHASTIC else None

    def doubts(self, build: Build) -> Iterable[str]:
        return (*build.plan.scheduler_doubts, *build.plan.obligations)

    def costs(self, build: Build) -> tuple[int, int, int]:
        return sum(source.nbytes for source in build.plan.sources.values()), build.plan.download, build.plan.nbytes

    def make(self, work: StepWork) -> dict[str, Any]:
        """The figures that ``check`` bounds. ``coverage``: the share of a term's keys that found a home."""
        build, content = work.build, work.content
        plan = build.plan
        if plan.layout != DIFFUSERS:
            content.mkdir()
        plan = replace(plan, target=content if plan.layout == DIFFUSERS else content / plan.target.name)
        report = fuse(
            plan, settings=build.settings, force=work.force, accept_loss=self.accept_loss, output=work.output,
            title=f"fuse {build.name}",
        )  # fmt: skip
        said = report.as_dict()
        return {
            "bytes": sum(path.stat().st_size for path in files_at(content)),
            "coverage": {
                term: reached / (reached + len(report.unmatched.get(term, ())))
                for term in dict.fromkeys(row.term for row in report.rows)
                if (reached := sum(row.parameters for row in report.rows if row.term == term))
            },
            "rows": said["coverage"],
            "rounding": said["rounding"],
            "unmatched": {name: list(keys) for name, keys in report.unmatched.items()},
            "dropped": said["dropped"],
            "tensors_sha256": said["sha256"],
        }


def builds(
    fuses: Mapping[str, Fuse], inputs: Mapping[str, Input], out: Path, settings: Settings, description: str | None
) -> tuple[Build, ...]:
    """The merge of every output, from headers alone: a base that several share is read once. ``fuses``: by output.

    Raises NotFoundError, FormatError, RecipeError, and every IncompatibleError.
    """
    settings = replace(settings, keep_inputs=len(fuses) > 1)  # the base is read once from the disk, for all of them
    bases = dict.fromkeys(section.base for section in fuses.values())
    models = {base: identify(_opened(inputs[base])) for base in bases}
    return tuple(
        _build(name, section, models[section.base], inputs, out, settings, description)
        for name, section in fuses.items()
    )


def _build(
    name: str, fuse: Fuse, base: Model, inputs: Mapping[str, Input], out: Path, settings: Settings,
    description: str | None,
) -> Build:  # fmt: skip
    layout = fuse.layout or base.layout
    roles = {role: inputs[source] for role, source in fuse.roles.items()}
    configs = None
    if layout == DIFFUSERS and (base.layout != DIFFUSERS or fuse.parts_from):
        if fuse.config_from is None:
            raise RecipeError(
                f"{name}: fuse.layout is diffusers, and the base no whole folder: fuse.config_from is missing",
                f"name a source with the configs, such as hf://{base.arch.hub}",
            )
        configs = roles["config_from"].path
    target = out / name / f"{name}.safetensors" if layout != DIFFUSERS else out / name
    terms = [_term(name, term, roles) for name, term in fuse.terms.items()]
    key = step_key("fuse", Fuse.version, _facts(name, fuse, roles, layout, settings))
    method, parameters = parse(fuse.method)
    merge = Merge(
        _source(roles["base"]),
        terms,
        method,
        output=Written(
            target,
            fuse.layout,
            stored_as(fuse.dtype, fuse.encoding),
            fuse.max_shard_size,
            fuse.drop_ema,
            fuse.rounding_seed,
            fuse.mend_position_ids,
            _source(roles["like"]) if fuse.like else None,
            fuse.rounding == ERROR_AWARE,
        ),
        config_from=str(configs) if configs else None,
        prediction=fuse.prediction,
        allow_unmatched=fuse.allow_unmatched,
        recipe=key,
        parameters=parameters,
        parts_from=_source(roles["parts_from"]) if fuse.parts_from else None,
        qkv_rows=fuse.qkv_rows,
    )
    opened = {_source(item): item for item in roles.values()}
    planned = plan(merge, opened=lambda source, _: _opened(opened[source]), base=base)
    return Build(name, fuse, planned, settings, roles, key, description)


def _opened(item: Input) -> TensorSource:
    assert item.opened is not None  # a base or a term: not for its configs alone
    return item.opened


def _source(item: Input) -> Source:
    """By its reference, not its path: what was baked before may have left the Hub's cache since."""
    return Source(item.found.reference, variant=item.found.locked.variant)


def _term(name: str, term: RecipeTerm, roles: Mapping[str, Input]) -> Term:
    item, tuned_from = roles[f"terms.{name}"], roles.get(f"terms.{name}.tuned_from")
    return Term(
        name,
        _source(item),
        _strength(term, item),
        term.block_weights or {},
        _source(tuned_from) if tuned_from else None,
        item.found.accelerator.name if item.found.accelerator else None,
        term.expert,
        term.alpha,
    )


def _strength(term: RecipeTerm, item: Input) -> float:
    return usual_strength(item.found.accelerator, item.found.reference) if term.strength is None else term.strength


def _facts(output: str, fuse: Fuse, roles: Mapping[str, Input], layout: str, settings: Settings) -> dict[str, Any]:
    """Everything that the output's bytes depend on. File names count: its metadata tell them."""
    strengths = {name: _strength(term, roles[f"terms.{name}"]) for name, term in fuse.terms.items()}
    kinds: Iterable[Accelerator | None] = (
        roles[f"terms.{name}"].found.accelerator for name, strength in strengths.items() if strength
    )
    drawn_with = next(filter(None, kinds), None)  # the first accelerator, unless its λ is 0
    return {
        "output": output,
        "layout": layout,
        "inputs": {
            role: {"name": name_of(item.path), "files": item.found.locked.hashes} for role, item in roles.items()
        },
        "terms": [
            {
                "name": name,
                "lambda": strengths[name],
                "block_weights": term.block_weights,
                **({"expert": term.expert} if term.expert else {}),
                **({"alpha": term.alpha} if term.alpha is not None else {}),
            }
            for name, term in fuse.terms.items()
        ],
        "options": fuse.model_dump(include={"dtype", "drop_ema", "max_shard_size", "allow_unmatched"}),
        **({"encoding": fuse.encoding} if fuse.encoding else {}),
        **({"prediction": fuse.prediction} if fuse.prediction else {}),
        **({"qkv_rows": fuse.qkv_rows} if fuse.qkv_rows else {}),
        **({"mend_position_ids": True} if fuse.mend_position_ids else {}),
        "sampling": drawn_with.sampling.as_dict() if drawn_with else None,
        "rounding_seed": fuse.rounding_seed,
        **({"rounding": ERROR_AWARE} if fuse.rounding == ERROR_AWARE else {}),
        **({"method": fuse.method} if fuse.method != ADD else {}),
        "device": settings.device.partition(":")[0],
    }


STEP = Fuse
