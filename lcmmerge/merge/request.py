"""What a user asks for, and the plan that comes of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lcmmerge import refs
from lcmmerge.accelerators import OFFICIAL, Accelerator, accelerator, by_reference
from lcmmerge.archs import Model, identify
from lcmmerge.errors import LcmMergeError, OutputError
from lcmmerge.merge.blocks import parse_block_weights
from lcmmerge.merge.configs import check_configs
from lcmmerge.merge.plan import Options, Plan, plan_fuse
from lcmmerge.merge.terms import Term, check_strength, term_of
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.remote import open_reference
from lcmmerge.tensors.source import PICKLES

SAFETENSORS = ".safetensors"
Open = Callable[..., TensorSource]  # as open_reference
NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Request:
    """References are paths or ``hf://``. ``strengths``: (λ1 of the style, λ2 of the LCM-LoRA).

    ``target``: None names the output after the inputs. ``lcm``: also an accelerator's name, None is the architecture's
    official LCM-LoRA. ``block_weights``: term name → specification. ``accelerator``: what kind the file of ``lcm`` is.
    """

    base: str
    target: Path | None = None
    style: str | None = None
    strengths: tuple[float, float] = (1.0, 1.0)
    lcm: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    tuned_from: str | None = None
    block_weights: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    config_from: str | None = None
    options: Options = Options()  # noqa: RUF009 - frozen
    accelerator: str | None = None


def plan(request: Request, *, dry_run: bool = False) -> tuple[Plan, Path | None]:
    """Resolve every reference, read headers, and plan; with it the folder of configs where the layout needs one.

    No safetensors is downloaded yet, so that what does not fit is refused before (``Plan.fetch`` does it); a
    ``dry_run`` downloads no pickle either. Raises NotFoundError, FormatError, and every IncompatibleError.
    """
    opened = partial(open_reference, pickles=not dry_run)
    base = identify(opened(request.base, "base", request.variant))
    configs = None
    if request.options.layout == DIFFUSERS != base.layout:
        configs = refs.configs(request.config_from or f"hf://{base.arch.hub}")
        check_configs(configs, base)
    target = _target(request, request.options.layout or base.layout)
    lcm, kind = _lcm(request, base)
    drawn_by = kind if request.strengths[1] else None
    return plan_fuse(base, _terms(request, base, lcm, opened), target, request.options, drawn_by), configs


def _terms(request: Request, base: Model, lcm: str | None, opened: Open) -> list[Term]:
    wanted = list(_distinct(_wanted(request, lcm)))
    names = [name for name, _, _ in wanted]
    for name, _, strength in wanted:  # before anything is fetched
        check_strength(name, strength)
    if strangers := sorted(request.block_weights.keys() - set(names)):
        raise LcmMergeError(f"block weights for {strangers[0]!r}: no such term", f"the terms are {', '.join(names)}")
    weights = {name: parse_block_weights(text, base) for name, text in request.block_weights.items()}
    origin = opened(request.tuned_from, "style base") if request.tuned_from else None
    return [
        term_of(name, opened(reference, name), strength, base, origin=origin, weights=weights.get(name))
        for name, reference, strength in wanted
    ]


def _wanted(request: Request, lcm: str | None) -> Iterator[tuple[str, str, float]]:
    """Name, reference and λ of each term, in recipe order."""
    style_strength, lcm_strength = request.strengths
    if request.style:
        yield "style", request.style, style_strength
    if lcm:
        yield "lcm", lcm, lcm_strength
    for reference, strength in request.adapters:
        yield Path(reference).stem, reference, strength


def _distinct(wanted: Iterable[tuple[str, str, float]]) -> Iterator[tuple[str, str, float]]:
    """A second term of the same name (the Hub's LoRAs are all ``pytorch_lora_weights``) is ``name-2``."""
    seen: Counter[str] = Counter()
    for name, reference, strength in wanted:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", reference, strength


def _lcm(request: Request, base: Model) -> tuple[str | None, Accelerator | None]:
    """The reference of λ2's term, and what accelerator it is, where that is known.

    A path that exists is no name, and of a file only what it is said to be is known. Raises NotFoundError.
    """
    given, said = request.lcm, accelerator(request.accelerator) if request.accelerator else None
    if given is None and not request.strengths[1]:
        return None, None
    if given and (Path(given).exists() or not NAME.fullmatch(given)):
        return given, said or by_reference(given)
    named = accelerator(given) if given else OFFICIAL
    if said not in (None, named):
        raise LcmMergeError(f"the accelerator is {named.name}, not {said.name}", f"name it by --lcm {said.name}")
    return named.file(base.arch), named


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
