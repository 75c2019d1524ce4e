"""What files say of a model in their metadata: ModelSpec, and the keys of kohya's programs that web UIs read of LoRAs.

https://github.com/Stability-AI/ModelSpec, 1.0.1; https://github.com/kohya-ss/sd-scripts, library/train_util.py. A
family's id is SwarmUI's (src/Text2Image/T2IModelClassSorter.cs), sd-scripts' or musubi-tuner's (sai_model_spec.py); its
file says whose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcmmerge.archs.base import Architecture, Model, Variant
from lcmmerge.refs.weights import DIFFUSERS

KEYS = "modelspec."
ID, RESOLUTION, TRIGGER = f"{KEYS}architecture", f"{KEYS}resolution", f"{KEYS}trigger_phrase"
HASH = f"{KEYS}hash_sha256"
VERSION, TAGS = "ss_base_model_version", "ss_tag_frequency"
DIFFUSERS_NAMES = "https://github.com/huggingface/diffusers"
# What another file's author says of that file alone; the hashes, and kohya's (sshs_), are of its tensors.
OF_ONE_FILE = re.compile(r"sshs_|modelspec\.(author|date|thumbnail|hash_\w+|implementation_version|\w+_dtype)$")


def spec(architecture: str, implementation: str, title: str, size: str, sha256: str) -> dict[str, str]:
    """The keys that a file must have, and the hash of its tensors. ``implementation``: whose names these have;
    ``size``: 512x512.
    """
    return {
        "format": "pt",
        f"{KEYS}sai_model_spec": "1.0.1",
        ID: architecture,
        f"{KEYS}implementation": implementation,
        f"{KEYS}title": title,
        RESOLUTION: size,
        HASH: f"0x{sha256}",
    }


def spec_of(model: Model, layout: str, title: str, sha256: str) -> dict[str, str]:
    """Of a checkpoint that is made from ``model``: what that says of itself stays."""
    variant, said = variant_of(model), model.source.metadata
    suffix = "" if model.purpose in ("base", variant.kind) else f"-{model.purpose.replace(' ', '-')}"
    architecture = said.get(ID) or variant.modelspec + suffix
    names = implementation(model.arch, layout, model)
    return spec(architecture, names, title, said.get(RESOLUTION) or pixels(variant), sha256)


def implementation(arch: Architecture, layout: str, model: Model | None = None) -> str:
    """Whose names a file of this layout has; where it is a denoiser's alone, those of the ``model`` that it is."""
    if layout == DIFFUSERS or (model and layout == model.layout and model.is_canonical):
        return DIFFUSERS_NAMES
    return arch.implementation


def pixels(variant: Variant) -> str:
    return f"{variant.size}x{variant.size}"


def variant_of(model: Model) -> Variant:
    """Which of its architecture's models it is, by what it is for and what it, or its scheduler, says of itself."""
    said, kinds = model.source.metadata, [model.purpose]
    kinds += [variant.kind for variant in model.arch.variants if said.get(ID) == variant.modelspec]
    kinds += [model.prediction.kind] if model.prediction.told_by else []
    return _variant(model.arch, kinds)


def _variant(arch: Architecture, kinds: Iterable[str]) -> Variant:
    variants = {variant.kind: variant for variant in arch.variants}
    return next((variants[kind] for kind in kinds if kind in variants), usual(arch))


def usual(arch: Architecture) -> Variant:
    """Those of its models of which nothing else is known."""
    return Variant("base", arch.modelspec, arch.version, arch.size)


def told_variant(archs: Sequence[Architecture], said: Iterable[Mapping[str, str]]) -> Variant | None:
    """Which models adapters are for, by their metadata, among the architectures that their names allow.

    None where neither tells one version from another.
    """
    every = [variant for arch in archs for variant in (usual(arch), *arch.variants)]
    for metadata in said:
        architecture, version = metadata.get(ID, "").removesuffix("/lora"), metadata.get(VERSION, "")
        for variant in every:
            if architecture == variant.modelspec or (not architecture and version and version == variant.version):
                return variant
    versions = {arch.version for arch in archs}
    return usual(archs[0]) if len(versions) == 1 else None


def network(variant: Variant | None, ranks: Mapping[float, float], *, whole: bool) -> dict[str, str]:
    """What kohya's programs write of a LoRA. ``ranks``: rank → alpha; ``whole``: it holds plain differences, too."""
    one = next(iter(ranks.items())) if len(ranks) == 1 else None
    version = {"ss_v2": str(variant.version.startswith("sd_v2")), VERSION: variant.version} if variant else {}
    return {
        **(version if variant and variant.version else {}),
        "ss_network_module": "lycoris.kohya" if whole else "networks.lora",
        "ss_network_dim": f"{one[0]:g}" if one else "Dynamic",
        "ss_network_alpha": f"{one[1]:g}" if one else "Dynamic",
    }


def inherited(metadata: Mapping[str, str]) -> dict[str, str]:
    """What still holds of what is made of a file."""
    return {key: text for key, text in metadata.items() if not OF_ONE_FILE.match(key)}


def triggers(sources: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The words that prompts need, of all that is in a file."""
    phrases = dict.fromkeys(phrase for metadata in sources if (phrase := metadata.get(TRIGGER, "").strip()))
    return {TRIGGER: ", ".join(phrases)} if phrases else {}


def tags(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The tags that LoRAs were trained with, by their names: kohya's folder → tag → how often."""
    found: dict[str, Any] = {}
    for name, metadata in sources.items():
        try:
            folders = json.loads(metadata.get(TAGS, "{}"))
        except (ValueError, RecursionError):
            continue
        found |= {f"{name}/{folder}": counts for folder, counts in folders.items()} if isinstance(folders, dict) else {}
    return {TAGS: json.dumps(found, sort_keys=True, ensure_ascii=False)} if found else {}
