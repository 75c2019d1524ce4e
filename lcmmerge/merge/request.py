"""What a user asks for, and the plan that comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from lcmmerge import refs
from lcmmerge.archs import Model, identify
from lcmmerge.errors import LcmMergeError, NotFoundError, OutputError
from lcmmerge.merge.blocks import parse_block_weights
from lcmmerge.merge.configs import check_configs
from lcmmerge.merge.outputs import DIFFUSERS
from lcmmerge.merge.plan import Options, Plan, plan_fuse
from lcmmerge.merge.terms import Term, open_term
from lcmmerge.tensors import open_source
from lcmmerge.tensors.source import PICKLES

SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Request:
    """References are paths or ``hf://``. ``strengths``: (λ1 of the style, λ2 of the LCM-LoRA).

    ``target``: None names the output after the inputs. ``lcm``: None is the architecture's official LCM-LoRA.
    ``block_weights``: term name → specification.
    """

    base: str
    target: Path | None = None
    style: str | None = None
    strengths: tuple[float, float] = (1.0, 1.0)
    lcm: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    style_base: str | None = None
    block_weights: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    config_from: str | None = None
    options: Options = Options()  # noqa: RUF009 - frozen


def plan(request: Request) -> tuple[Plan, Path | None]:
    """Resolve every reference, read headers, and plan; with it the folder of configs where the layout needs one.

    Raises NotFoundError, FormatError, and every IncompatibleError.
    """
    base = identify(open_source(refs.resolve(request.base, "base"), request.variant))
    configs = None
    if request.options.layout == DIFFUSERS != base.layout:
        configs = refs.configs(request.config_from or f"hf://{base.arch.hub}")
        check_configs(configs, base)
    target = _target(request, request.options.layout or base.layout)
    return plan_fuse(base, _terms(request, base), target, request.options), configs


def _terms(request: Request, base: Model) -> list[Term]:
    wanted = list(_distinct(_wanted(request, base)))
    names = [name for name, _, _ in wanted]
    if endless := [name for name, _, strength in wanted if not isfinite(strength)]:
        raise LcmMergeError(f"λ of {endless[0]}: no finite number", "give one such as 0.8")
    if strangers := sorted(request.block_weights.keys() - set(names)):
        raise LcmMergeError(f"block weights for {strangers[0]!r}: no such term", f"the terms are {', '.join(names)}")
    weights = {name: parse_block_weights(text, base) for name, text in request.block_weights.items()}
    style_base = refs.resolve(request.style_base, "style base") if request.style_base else None
    paths = [refs.resolve(reference, name) for name, reference, _ in wanted]
    return [
        open_term(name, path, strength, base, style_base=style_base, weights=weights.get(name))
        for (name, _, strength), path in zip(wanted, paths, strict=True)
    ]


def _wanted(request: Request, base: Model) -> Iterator[tuple[str, str, float]]:
    """Name, reference and λ of each term, in recipe order."""
    style_strength, lcm_strength = request.strengths
    if request.style:
        yield "style", request.style, style_strength
    if request.lcm or lcm_strength:
        yield "lcm", request.lcm or official_lcm(base), lcm_strength
    for reference, strength in request.adapters:
        yield Path(reference).stem, reference, strength


def _distinct(wanted: Iterable[tuple[str, str, float]]) -> Iterator[tuple[str, str, float]]:
    """A second term of the same name (the Hub's LoRAs are all ``pytorch_lora_weights``) is ``name-2``."""
    seen: Counter[str] = Counter()
    for name, reference, strength in wanted:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", reference, strength


def official_lcm(base: Model) -> str:
    if base.arch.lcm_lora is None:
        raise NotFoundError(f"{base.arch.title} has no official LCM-LoRA", "name an acceleration LoRA with --lcm")
    return base.arch.lcm_lora


def _target(request: Request, layout: str) -> Path:
    """The output as asked for, else ``base-style-lcm`` in this folder; a file's name ends in .safetensors."""
    references = [request.base, *([request.style] if request.style else [])]
    target = request.target or Path("-".join([*(Path(reference).stem for reference in references), "lcm"]))
    return target if layout == DIFFUSERS else safetensors_name(target)


def safetensors_name(target: Path) -> Path:
    """With the suffix, where it has none. Raises OutputError for a pickle's."""
    if target.suffix == SAFETENSORS:
        return target
    if target.suffix in PICKLES:
        raise OutputError(f"{target}: {target.suffix} files can hold code and are not written", "name it .safetensors")
    return target.with_name(target.name + SAFETENSORS)
