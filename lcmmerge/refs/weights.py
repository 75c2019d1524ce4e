"""Which files of a folder hold the weights: by their names alone, on this disk and on the Hub alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.refs.files import parse_object, read_bytes

SINGLE_FILE, DIFFUSERS = "single-file", "diffusers"
MODEL_INDEX = "model_index.json"
SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
SCHEDULER = "scheduler/scheduler_config.json"
SIDECAR = "adapter_config.json"  # what PEFT keeps beside an adapter's tensors
# An adapter as its training began, in a folder of the adapter's own; PEFT's guides call it pissa_init.
INITIAL, INITIAL_WEIGHTS = "initial.", re.compile(r"[a-z]+_init/adapter_model\.safetensors")
DENOISERS = ("unet", "transformer")
SMALL = (".json", ".txt", ".model")  # configs, scheduler, tokenizers
CHOOSE = "choose one with --variant"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a folder and of its subfolders, by relative name with slashes.

    ``title`` is what messages call the folder; ``read`` is for small files, and raises NotFoundError.
    """

    title: str
    names: frozenset[str]
    read: Callable[[str], bytes]

    def at(self, name: str) -> str:
        return f"{self.title}/{name}" if name else self.title


@dataclass(frozen=True, slots=True)
class Choice:
    """The weight files of a folder that are to be read.

    ``weights``: (what goes before the tensors' names, file); ``indices``: of shards.
    """

    layout: str
    weights: tuple[tuple[str, str], ...]
    indices: tuple[str, ...] = ()


def local_tree(path: Path) -> Tree:
    """The files of a folder and of its subfolders, or those beside a file."""
    folder, patterns = (path, ("*", "*/*")) if path.is_dir() else (path.parent, ("*",))

    def read(name: str) -> bytes:
        try:
            return read_bytes(folder / name)
        except OSError as error:
            raise NotFoundError(f"{folder / name}: cannot be read ({error.strerror})", "check the path") from None

    files = (file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    return Tree(str(folder), frozenset(file.relative_to(folder).as_posix() for file in files), read)


def choose(tree: Tree, name: str = "", variant: str | None = None) -> Choice:
    """The file ``name``, the shards that an index of that name names, or by default the folder's weights.

    A folder is diffusers', or holds one checkpoint, whole or in shards. ``variant`` chooses among its variants
    (``fp16``: ``….fp16.safetensors``) where a component has it; by default the plain files, or the only variant there
    is. Raises NotFoundError, FormatError.
    """
    if name:
        shards, index = (_shards(tree, name), (name,)) if is_index(name) else ((name,), ())
        return Choice(SINGLE_FILE, tuple(("", file) for file in shards), index)
    components = _components(tree)
    chosen = {component: _weight_files(tree, component, variant) for component in components or [""]}
    weights = [(f"{component}." if component else "", file) for component in chosen for file in chosen[component][1]]
    if variant and variant not in {_variant_of(file) for _, file in weights}:
        raise NotFoundError(f"{tree.title}: nothing in it has the variant {variant!r}", CHOOSE)
    if SIDECAR in tree.names:
        weights += [(INITIAL, name) for name in sorted(tree.names) if INITIAL_WEIGHTS.fullmatch(name)][:1]
    indices = tuple(index for found, _ in chosen.values() for index in found)
    return Choice(DIFFUSERS if components else SINGLE_FILE, tuple(weights), indices)


def needed(tree: Tree, name: str = "", variant: str | None = None) -> tuple[str, ...]:
    """All that reading the folder, or the file ``name`` in it, asks for, sorted: weights and small files.

    Raises NotFoundError, FormatError.
    """
    choice = choose(tree, name, variant)
    small = [file for file in tree.names if file == SIDECAR] if name else small_files(tree)
    return tuple(sorted({*(file for _, file in choice.weights), *choice.indices, *small}))


def small_files(tree: Tree) -> list[str]:
    """A folder's own configs, and those of the pipeline's parts that its model_index.json names; sorted."""
    parts = read_json(tree, MODEL_INDEX).keys() if MODEL_INDEX in tree.names else ()
    return sorted(
        name
        for name in tree.names
        if name.endswith(SMALL)
        and not is_index(name)
        and (folder := str(PurePosixPath(name).parent)) in (".", *parts)
        and not name.removeprefix(f"{folder}/").startswith(".")
    )


def has_suffix(name: str, *suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name ends so, in letters of either case."""
    return name.lower().endswith(tuple(suffix for group in suffixes for suffix in group))


def is_index(name: str) -> bool:
    suffixes = PurePosixPath(name).suffixes
    return name.endswith(".json") and ".index" in suffixes


def read_json(tree: Tree, name: str, cure: str = "download or export the file again") -> dict[str, Any]:
    """A JSON object that is small and another program's. Raises NotFoundError, FormatError."""
    try:
        return parse_object(tree.read(name))
    except ValueError:
        raise FormatError(f"{tree.at(name)}: not a JSON object", cure) from None


def _components(tree: Tree) -> list[str]:
    """The subfolders with the pipeline's weights, in name order; empty when this is no diffusers folder.

    Those that model_index.json names, where there is one: SDXL's own folder also holds ``vae_1_0`` and ONNX
    and OpenVINO exports.
    """
    folders = {name.partition("/")[0] for name in tree.names if "/" in name}
    if MODEL_INDEX in tree.names:
        folders &= read_json(tree, MODEL_INDEX).keys()
    elif folders.isdisjoint(DENOISERS):
        return []
    return sorted(folder for folder in folders if _candidates(tree, folder))


def _candidates(tree: Tree, folder: str) -> list[str]:
    """Weight files and indices of shards. OpenVINO's weights end in .bin too, beside an .xml."""
    return sorted(
        name
        for name in tree.names
        if name.rpartition("/")[0] == folder
        and (has_suffix(name, SAFETENSORS, (".bin",)) or is_index(name))
        and not PurePosixPath(name).name.startswith(".")
        and str(PurePosixPath(name).with_suffix(".xml")) not in tree.names
    )


def _weight_files(tree: Tree, folder: str, variant: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The index, where there is one, and the files of one component.

    safetensors before .bin; one variant only: never two copies of a weight.
    """
    candidates, where = _candidates(tree, folder), tree.at(folder)
    safe = [name for name in candidates if ".bin" not in PurePosixPath(name.lower()).suffixes]
    by_variant: dict[str, list[str]] = {}
    for name in safe or candidates:
        by_variant.setdefault(_variant_of(name), []).append(name)
    if not by_variant:
        raise NotFoundError(f"{where}: holds no weights", "it needs .safetensors or .bin files")
    only = next(iter(by_variant.values())) if len(by_variant) == 1 else None
    chosen = by_variant.get(variant or "") or by_variant.get("") or only
    if chosen is None:
        have = ", ".join(sorted(by_variant))
        raise NotFoundError(f"{where}: has no plain weights, but the variants {have}", CHOOSE)
    if indices := [name for name in chosen if is_index(name)]:
        return tuple(indices[:1]), _shards(tree, indices[0])
    shards = [name for name in chosen if _SHARD.search(name)]
    whole = [name for name in chosen if name not in shards]
    if len(whole) > 1:
        several = ", ".join(PurePosixPath(name).name for name in whole)
        raise NotFoundError(f"{where}: holds several weight files: {several}", "name the file itself")
    return (), tuple(whole or shards)


def _variant_of(name: str) -> str:
    """The variant in a file's name, or "".

    ``fp16`` in ``model.fp16.safetensors``, ``model.fp16-00001-of-00002.safetensors``,
    ``model-00001-of-00002.fp16.safetensors`` and ``model.safetensors.index.fp16.json``.
    """
    words = _SHARD.sub("", PurePosixPath(name).name).split(".")[1:]
    return ".".join(word for word in words if word.lower() not in ("safetensors", "sft", "bin", "index", "json"))


def _shards(tree: Tree, index: str) -> tuple[str, ...]:
    weight_map = read_json(tree, index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{tree.at(index)}: not an index of shards", "its weight_map must name a file per tensor")
    for name in names:
        if PurePosixPath(name).name != name:
            raise FormatError(f"{tree.at(index)}: the shard {name!r} lies outside its folder", "use plain file names")
    folder = index.removesuffix(PurePosixPath(index).name)
    shards = tuple(folder + name for name in sorted(set(names)))
    for shard in shards:
        if shard not in tree.names:
            cure = f"{PurePosixPath(index).name} names it: download it too"
            raise NotFoundError(f"{tree.at(shard)}: this shard is missing", cure)
    return shards
