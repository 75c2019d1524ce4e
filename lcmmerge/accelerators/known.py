"""The entries of all modules as one table, and which of them a name, a reference or a file is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import PurePath
from types import MappingProxyType
from typing import cast

from lcmmerge.accelerators.base import Accelerator
from lcmmerge.adapters import AdapterFile
from lcmmerge.archs import Architecture, Model, lora_targets
from lcmmerge.archs.names import squash
from lcmmerge.errors import NotFoundError
from lcmmerge.history import RECIPE, record_of
from lcmmerge.registry import entries

TABLES = cast("Mapping[str, tuple[Accelerator, ...]]", entries("lcmmerge.accelerators", "ENTRIES"))
ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {entry.name: entry for table in TABLES.values() for entry in table}
)
OFFICIAL = ACCELERATORS["lcm"]
COMMON = "pytorch_lora_weights.safetensors"  # diffusers' own name for a LoRA's file
NAMELESS = (COMMON, "diffusion_pytorch_model.safetensors", "adapter_model.safetensors")  # told by folders alone
NAME = re.compile(r"[\w-]+")  # what could be one's name


def bases() -> tuple[str, ...]:
    """The architectures that any accelerator has a file for, also those that are not registered here."""
    return tuple(sorted({arch for entry in ACCELERATORS.values() for arch in entry.files}))


def names(arch: Architecture) -> tuple[str, ...]:
    """The accelerators that have a file for the architecture."""
    return tuple(entry.name for entry in ACCELERATORS.values() if arch.name in entry.files)


def accelerator(name: str) -> Accelerator:
    """Raises NotFoundError for a name that is not in the table."""
    if name not in ACCELERATORS:
        near = get_close_matches(name, ACCELERATORS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lcmmerge accelerators` lists them"
        raise NotFoundError(f"{name!r}: neither a file nor the name of an accelerator", hint)
    return ACCELERATORS[name]


def file_of(kind: Accelerator, arch: Architecture) -> str:
    """Its file for the architecture. Raises NotFoundError where there is none, or a pair of them."""
    if arch.name not in kind.files:
        others = names(arch)
        raise NotFoundError(
            f"{arch.title}: the accelerator {kind.name} has no file for it, only for {', '.join(kind.files)}",
            f"--accelerator takes {'any of ' + ', '.join(others) + ', or ' if others else ''}a file",
        )
    file = kind.files[arch.name]
    if not isinstance(file, str):
        raise NotFoundError(
            f"{arch.title}: the accelerator {kind.name} is a pair of files, one for each expert",
            f"merge each expert with its own: {', '.join(f'{part} {place}' for part, place in file.items())}",
        )
    return file


def by_reference(reference: str) -> Accelerator | None:
    """The accelerator whose file this is."""
    return next((entry for entry in ACCELERATORS.values() if reference in entry.references), None)


def by_name(path: PurePath) -> Accelerator | None:
    """The accelerator that has the only file of this name, or one in a repository called as the folder around it."""
    alike = [
        (entry, place.parent.name.lower())
        for entry in ACCELERATORS.values()
        for place in map(PurePath, entry.references)
        if place.name == path.name
    ]
    placed = [entry for entry, folder in alike if folder == path.parent.name.lower()]
    found = placed or ([] if path.name in NAMELESS else [entry for entry, _ in alike])
    named = {entry.name for entry in found}
    return ACCELERATORS[named.pop()] if len(named) == 1 else None


def usual_strength(kind: Accelerator | None, reference: str | None) -> float:
    """The λ of a term that is given none: of an accelerator its own, as far as it is named or known by its file."""
    found = kind or (by_reference(reference) or by_name(PurePath(reference)) if reference else None)
    return float(found.strength.default) if found else 1.0


def by_file(file: AdapterFile, base: Model) -> Accelerator | None:
    """The accelerator that an adapter's file is, where its name, its modules or its metadata leave no doubt.

    A name does where only one accelerator has such a file, or the folder around it is called as its repository. The
    official LCM-LoRAs are known by their modules, too: as PCM's have the same, only where no name speaks against it.
    """
    path = file.source.path
    if record_of(file.source, RECIPE).get("type") == "lcmmerge distill":
        return OFFICIAL
    if found := by_name(path):
        return found
    name = path.name.lower()
    if name != COMMON and ("lcm" not in name or "pcm" in name):
        return None
    modules = {f"lora_unet_{squash(module.removeprefix('unet.'))}" for module in lora_targets(base.shapes)}
    downs = [patch.roles.get("down") for patch in file.patches]
    official = {patch.key for patch in file.patches} == modules and all(down and down.shape[0] == 64 for down in downs)
    return OFFICIAL if official and modules else None


def obligations(base: Model, kinds: Iterable[Accelerator]) -> tuple[str, ...]:
    """What the licences of a base and of accelerators ask, in lines, of which none says only what others do."""
    said: list[str] = []
    lines: list[str] = []
    for kind in kinds:
        if set(kind.facts) - set(said):
            lines.append(kind.obligations)
            said += kind.facts
    if base.duty and not any(base.duty.startswith(fact) for fact in said):
        lines.insert(0, f"the base is {base.arch.title}, whose licence says: {base.duty}")
    return tuple(lines)
