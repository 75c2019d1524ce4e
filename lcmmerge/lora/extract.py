"""A dense task vector τ = θ_ft − θ_base → a LoRA: the best approximation of the wanted rank, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any

from torch import Tensor

from lcmmerge.archs import Model, kohya_name, modelspec, module_of
from lcmmerge.bake.arithmetic import precision
from lcmmerge.errors import IncompatibleError, NumericError, UnmatchedKeysError
from lcmmerge.lora import lorafile
from lcmmerge.lora.lorafile import LoraLayer, LoraOrigin, Made
from lcmmerge.lora.lowrank import spectrum, squared_norm
from lcmmerge.refs import name_of
from lcmmerge.tensors import DTYPES, DType, TensorSource
from lcmmerge.tensors.digest import hashing
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.targets import check_target
from lcmmerge.terms.match import Checkpoint, Difference, TaskVector, likely_cause, limits, match, task_vector

LOW_RANK, LEFT_OUT = "low rank", "left out"
HEADROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """How close a LoRA is to come to a difference.

    ``energy``: the share of each ‖Δ‖² that is enough, None for the full ``rank`` everywhere; ``full``: norms and
    biases too, which a plain LoRA does not have, None where the denoiser is a transformer: what reads LoRAs of these
    knows them.
    """

    rank: int = 64
    energy: float | None = None
    dtype: DType = DTYPES["F16"]
    full: bool | None = None


@dataclass(frozen=True, slots=True)
class Extracted:
    """What an extraction kept and what it left out. ``left_out``: changed parameters that the file does not hold."""

    output: str
    layers: tuple[LoraLayer, ...]
    left_out: tuple[str, ...]
    energy: float
    doubts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "energy": self.energy,
            "layers": [layer.as_dict() for layer in self.layers],
            "left_out": list(self.left_out),
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True, slots=True)
class ExtractedParameter:
    """A parameter, and how it is stored: ``LOW_RANK`` under ``key``, whole under ``key.role``, or ``LEFT_OUT``."""

    difference: Difference
    key: str
    role: str

    @property
    def name(self) -> str:
        return self.difference.tuned.name


def tuned_of(source: TensorSource, base: Model) -> TaskVector:
    """The fine-tuned checkpoint. Raises IncompatibleError where it is an adapter already."""
    term = task_vector("tuned", source, 1.0, base)
    if not isinstance(term.content, Checkpoint):
        raise IncompatibleError(f"{source.path}: is an adapter already", "name a fine-tuned checkpoint")
    if len(experts := term.content.tuned.experts) > 1:
        what = f"{source.path}: has several experts, and a LoRA's file has names for one"
        raise IncompatibleError(what, f"extract from each one's folder, such as its {experts[0]}, and that of the base")
    return term


def extract(
    tuned: TaskVector,
    base: Model,
    target: Path,
    settings: ExtractSettings,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Extracted:
    """Write the LoRA; ``progress`` is called with the bytes of ``tuned`` that are done.

    What is on the Hub is downloaded once it is known to fit. Raises UnmatchedKeysError, ShapeMismatchError,
    NoEffectError (nothing was tuned), NumericError, OutputError, NotFoundError.
    """
    if settings.full is None:
        settings = replace(settings, full=not _is_unet(base))
    matched = match(0, tuned, base)
    if matched.unmatched:
        few = ", ".join(matched.unmatched[:3])
        raise UnmatchedKeysError(
            f"{tuned.path}: {len(matched.unmatched)} of its parameters are not in {base.source.path.name}: {few}",
            likely_cause(tuned, base),
        )
    differences = [item for item in matched.contributions.values() if isinstance(item, Difference)]
    targets = [_target(difference, base, settings) for difference in differences]
    specs = [spec for target in targets for spec in _specs(target, settings)]
    sources = {"base": base.source, "tuned": _source(tuned)}
    inputs = [path for source in sources.values() for path in (source.path, *source.files)]
    check_target(target, force=force, needed=sum(spec.nbytes for spec in specs) + HEADROOM, inputs=inputs)
    for source in sources.values():
        source.fetch()
    title = " - ".join(Path(name_of(path)).stem for path in (tuned.path, base.source.path))
    with hashing(sources) as hashes:

        def origin(final: bool) -> LoraOrigin:
            known = hashes() if final else dict.fromkeys(sources, lorafile.UNKNOWN)
            words = modelspec.triggers([sources["tuned"].metadata])
            recipe = _recipe(sources, known, settings)
            return LoraOrigin(base.arch, modelspec.variant_of(base), title, recipe, words)

        def done(item: ExtractedParameter) -> None:
            progress(sum(nbytes for _, nbytes in item.difference.tuned.spans))

        make, read = partial(_make, settings), sources.values()
        layers = lorafile.write_adapter(target, targets, make, specs, origin, done, sources=read, force=force)
    return replace(_extracted(target, targets, layers), doubts=tuple(limits(tuned, differences)))


def _source(tuned: TaskVector) -> TensorSource:
    assert isinstance(tuned.content, Checkpoint)
    return tuned.content.tuned.source


def _target(difference: Difference, base: Model, settings: ExtractSettings) -> ExtractedParameter:
    """Embeddings and the VAE have no place in a LoRA file; norms and biases have where the whole is asked for, by the
    names that programs for U-Nets or for transformers read.
    """
    name = difference.tuned.name
    module = module_of(name)
    key, parameter = kohya_name(module, base.arch), name.removeprefix(f"{module}.")
    if key is None or ".embeddings." in module:
        return ExtractedParameter(difference, "", LEFT_OUT)
    bare = name == module  # a table of modulations
    if len(difference.shape) > 1 and not bare:
        return ExtractedParameter(difference, key, LOW_RANK)
    if not settings.full or bare:
        return ExtractedParameter(difference, key, "diff" if settings.full else LEFT_OUT)
    if not _is_unet(base):
        return ExtractedParameter(difference, key, "diff_b" if parameter == "bias" else "diff")
    weight = base.parameters.get(f"{module}.weight")
    norm = weight is not None and len(weight.shape) == 1
    return ExtractedParameter(difference, key, f"{parameter[0]}_norm" if norm else "diff_b")


def _is_unet(base: Model) -> bool:
    return base.arch.denoiser.name == "unet"


def _specs(target: ExtractedParameter, settings: ExtractSettings) -> Iterator[TensorSpec]:
    """The most that a parameter can take in the file."""
    shape = target.difference.shape
    if target.role == LOW_RANK:
        rank = min(settings.rank, shape[0], prod(shape[1:]))
        yield from lorafile.low_rank_specs(target.key, shape, rank, settings.dtype)
    elif target.role != LEFT_OUT:
        yield TensorSpec(f"{target.key}.{target.role}", settings.dtype, shape)


def _make(settings: ExtractSettings, made: Made[ExtractedParameter]) -> None:
    target = made.item
    tuned, base = target.difference.tuned, target.difference.origin
    wider = max(tuned, base, key=lambda operand: operand.dtype.itemsize)
    delta = target.difference.read("cpu", precision(wider)).float()
    norm = squared_norm(delta)
    if not isfinite(norm):
        raise NumericError(f"{tuned.path}: {tuned.name} or its base holds NaN or Inf", "one of the two is damaged")
    if not norm:
        return
    if target.role == LOW_RANK:
        made.tensors, made.layer = _approximate(target, delta, settings)
        return
    made.layer = LoraLayer(target.name, norm, 0.0 if target.role == LEFT_OUT else norm)
    made.tensors = {spec.name: lorafile.rounded(spec, delta) for spec in _specs(target, settings)}


def _approximate(
    target: ExtractedParameter, delta: Tensor, settings: ExtractSettings
) -> tuple[dict[str, Tensor], LoraLayer]:
    found = spectrum(delta.flatten(1), settings.rank, target.name)
    rank = found.enough(settings.rank, settings.energy)
    kept = float(found.energies()[rank - 1]) * found.square
    tensors = lorafile.low_rank(target.key, *found.factors(rank), tuple(delta.shape), settings.dtype)
    return tensors, LoraLayer(target.name, found.square, kept, rank)


def _extracted(target: Path, targets: list[ExtractedParameter], layers: tuple[LoraLayer, ...]) -> Extracted:
    left_out = {target.name for target in targets if target.role == LEFT_OUT}
    held = tuple(layer for layer in layers if layer.name not in left_out)
    whole = sum(layer.square for layer in held)
    energy = sum(layer.kept for layer in held) / whole
    return Extracted(str(target), held, tuple(layer.name for layer in layers if layer.name in left_out), energy)


def _recipe(
    sources: Mapping[str, TensorSource], hashes: Mapping[str, str], settings: ExtractSettings
) -> dict[str, Any]:
    named = {name: {"name": name_of(source.path), "sha256": hashes[name]} for name, source in sources.items()}
    return {
        "type": "lcmmerge extract",
        **named,
        "rank": settings.rank,
        "energy": settings.energy,
        "dtype": settings.dtype.name,
        "full": settings.full,
    }
