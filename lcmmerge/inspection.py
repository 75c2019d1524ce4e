"""What headers tell about a file: a checkpoint, an adapter, or something else. No weight is read, no torch loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lcmmerge.accelerators import OFFICIAL
from lcmmerge.adapters import AdapterFile, Patch, algorithm
from lcmmerge.archs import (
    Architecture,
    Model,
    guess_architecture,
    is_ema,
    likely_architectures,
    lora_parameters,
    lora_targets,
    names_of,
)
from lcmmerge.archs.positions import broken_positions
from lcmmerge.errors import IncompatibleError
from lcmmerge.history import RECIPE, record_of
from lcmmerge.tensors import TensorInfo, TensorSource
from lcmmerge.tensors.encodings import count_by_name
from lcmmerge.terms.match import read_content

LCM_RANK = 64  # of the official LCM-LoRAs
ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a file's tensors; ``dtypes``: dtype, or encoding, → how many have it."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]

    @classmethod
    def of(cls, name: str, infos: Iterable[TensorInfo]) -> Part:
        infos = {info.name: info for info in infos}.values()  # several parameters may share one stored tensor
        numel, nbytes = sum(info.numel for info in infos), sum(each.nbytes for info in infos for each in info.stored)
        return cls(name, len(infos), numel, nbytes, count_by_name(info.encoding for info in infos))

    def as_dict(self) -> dict[str, Any]:
        counts = {"tensors": self.tensors, "parameters": self.parameters, "bytes": self.nbytes}
        return counts | {"dtypes": dict(self.dtypes)}


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint is.

    ``parts``: the components, then EMA copies and other leftovers. ``missing``: parameters that components lack.
    ``broken``: ``position_ids`` that are not 0, 1, 2 …
    ``lora_modules`` and ``lora_parameters``: what an LCM-LoRA of rank 64 would train.
    """

    model: Model
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    broken: tuple[str, ...]
    lora_modules: int
    lora_parameters: int

    @property
    def official_lcm(self) -> str | None:
        """The reference of the architecture's official LCM-LoRA."""
        file = OFFICIAL.files.get(self.model.arch.name)
        return file if isinstance(file, str) else None

    def as_dict(self) -> dict[str, Any]:
        arch = self.model.arch
        return {
            "kind": "checkpoint",
            "architecture": arch.name,
            "title": arch.title,
            "purpose": self.model.purpose,
            "prediction": self.model.prediction.as_dict(),
            "layout": self.model.layout,
            "parts": {part.name: part.as_dict() for part in self.parts},
            "missing": list(self.missing),
            "broken": list(self.broken),
            "lcm_lora": {
                "official": self.official_lcm,
                "rank": LCM_RANK,
                "modules": self.lora_modules,
                "parameters": self.lora_parameters,
            },
        }


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """An algorithm's patches in one component; ``ranks`` and ``alphas``: value → how many modules have it."""

    component: str
    algorithm: str
    modules: int
    parameters: int
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "component": self.component,
            "algorithm": self.algorithm,
            "modules": self.modules,
            "parameters": self.parameters,
            "ranks": _by_text(self.ranks),
            "alphas": _by_text(self.alphas),
        }


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter is.

    ``architecture``: the title of the one that it looks made for. ``parameters``: trainable ones.
    """

    file: AdapterFile
    architecture: str | None
    parts: tuple[AdapterPart, ...]
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": "adapter",
            "architecture": self.architecture,
            "grammars": list(self.file.grammars),
            "parts": [part.as_dict() for part in self.parts],
            "trainable": self.parameters,
            "embeddings": list(self.file.embeddings),
            "unknown": list(self.file.unknown),
        }


@dataclass(frozen=True, slots=True)
class Unknown:
    """Neither a checkpoint nor an adapter that we know; ``remark`` says what it looks like."""

    remark: str

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "unknown", "remark": self.remark}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is, from its header alone."""

    source: TensorSource
    whole: Part
    content: CheckpointFacts | AdapterFacts | Unknown

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recorded merge recipe, where it is readable."""
        return record_of(self.source, RECIPE) or None

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.source.path),
            "files": [str(path) for path in self.source.files],
            **self.content.as_dict(),
            **self.whole.as_dict(),
            "metadata": dict(self.source.metadata),
            "recipe": self.recipe,
        }


def inspect(source: TensorSource) -> Inspection:
    """Raises FormatError for an adapter that lacks some of its tensors."""
    content: CheckpointFacts | AdapterFacts | Unknown
    try:
        found = read_content(source)
        content = _checkpoint(found) if isinstance(found, Model) else _adapter(found)
    except IncompatibleError as error:
        content = Unknown(error.message.removeprefix(f"{source.path}: "))
    return Inspection(source, Part.of("all", source), content)


def _checkpoint(model: Model) -> CheckpointFacts:
    stored: dict[str, list[TensorInfo]] = {component: [] for component in model.components}
    for name, parameter in model.parameters.items():
        stored[name.partition(".")[0]].append(parameter.info)
    for name, info in model.leftovers.items():
        stored.setdefault("EMA" if is_ema(name) else "other", []).append(info)
    shapes = model.shapes
    return CheckpointFacts(
        model,
        tuple(Part.of(name, infos) for name, infos in stored.items()),
        model.missing,
        broken_positions(model),
        len(lora_targets(shapes)),
        lora_parameters(shapes, LCM_RANK),
    )


def _adapter(file: AdapterFile) -> AdapterFacts:
    candidates = likely_architectures(file.modules)
    groups: dict[tuple[str, str], list[Patch]] = {}
    for patch in file.patches:
        name, _ = algorithm(patch)
        groups.setdefault((_component(patch, candidates), name), []).append(patch)
    parts = tuple(_adapter_part(*key, patches) for key, patches in sorted(groups.items()))
    return AdapterFacts(file, guess_architecture(file.modules), parts, _trainable(file.patches))


def _component(patch: Patch, candidates: tuple[Architecture, ...]) -> str:
    home = names_of(candidates[0]).find(patch.key) if candidates else None
    return home.module.partition(".")[0] if home else ELSEWHERE


def _adapter_part(component: str, name: str, patches: list[Patch]) -> AdapterPart:
    ranks = Counter(rank for patch in patches if (rank := algorithm(patch)[1].rank(patch)) is not None)
    alphas = Counter(patch.alpha for patch in patches if patch.alpha is not None)
    modules = len({patch.key for patch in patches})
    return AdapterPart(component, name, modules, _trainable(patches), ranks, alphas)


def _trainable(patches: Iterable[Patch]) -> int:
    """A tensor that serves a weight and a bias counts once."""
    infos = {info.name: info for patch in patches for info in patch.roles.values()}
    return sum(info.numel for info in infos.values())


def _by_text(counts: Mapping[Any, int]) -> dict[str, int]:
    return {f"{value:g}": counts[value] for value in sorted(counts)}
