"""Every spelling under which adapter files name a module, and whose spellings they are.

| spelling | who writes it |
| --- | --- |
| ``lora_unet_down_blocks_0_…``, ``lora_te_…`` | kohya for SD 1 and 2; the official LCM-LoRA files |
| ``lora_unet_input_blocks_1_…``, ``lora_te1_…``, ``lora_te2_…`` | kohya for SDXL |
| ``lycoris_down_blocks_0_…`` | LyCORIS outside kohya |
| ``unet.down_blocks.0.…``, ``text_encoder.…`` | diffusers |
| ``down_blocks.0.…``, ``text_model.…`` | PEFT, on one model |
| ``diffusion_model.input_blocks.1.…``, ``text_encoders.clip_l.transformer.…`` | ComfyUI |
| ``model.diffusion_model.input_blocks.1.…`` | a single file's own names |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType

from lcmmerge.archs.base import Architecture, Model, architectures
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.foreign import guess_family
from lcmmerge.archs.keymap import Slot
from lcmmerge.archs.unet import LDM
from lcmmerge.refs.weights import SINGLE_FILE


def aliases(model: Model) -> dict[str, str]:
    """Spelling → canonical module (a parameter's name without ``.weight``), for the modules the model has.

    A spelling that two modules share is in doubt, and left out.
    """
    present = {_module(name) for name in model.parameters}
    return {alias: module for alias, module in spellings(model.arch).items() if module in present}


def kohya_name(module: str, arch: Architecture) -> str | None:
    """``unet.down_blocks.0.…`` → ``lora_unet_down_blocks_0_…``; None in a component without a prefix, the VAE."""
    component, _, name = module.partition(".")
    prefix = _kohya_prefixes(arch).get(component)
    return prefix and f"{prefix}_{_flat(name)}"


def guess_architecture(keys: Iterable[str]) -> str | None:
    """The title of the architecture that an adapter with these module names was made for, None when in doubt."""
    keys = set(keys)
    return guess_family(keys) or " or ".join(arch.title for arch in likely_architectures(keys)) or None


def likely_architectures(keys: Iterable[str]) -> tuple[Architecture, ...]:
    """The architecture that has the most of the modules; among equals, the one of which they are the greater part
    (everything of SSD-1B's has a home in SDXL, too). Several where names do not tell (the U-Nets of SD 1 and 2).
    """
    keys = set(keys)
    if guess_family(keys):
        return ()
    scores = {arch.name: _score(arch, keys) for arch in architectures().values()}
    best = max(scores.values())
    return tuple(architectures()[name] for name, score in scores.items() if best[0] and score == best)


def _score(arch: Architecture, keys: set[str]) -> tuple[int, float]:
    """How many of the keys are the architecture's, and the share of its like modules that they are."""
    table = spellings(arch)
    found = {table[key] for key in keys if key in table}
    like = Counter(_kind(module) for module in set(table.values()))
    return len(keys & table.keys()), len(found) / (sum(like[kind] for kind in set(map(_kind, found))) or 1)


def _kind(module: str) -> str:
    """A module's component and name without its place: ``unet`` and ``attn1.to_q``."""
    parts = module.split(".")
    return f"{parts[0]}.{parts[-2]}.{parts[-1]}"


@cache
def spellings(arch: Architecture) -> Mapping[str, str]:
    """Spelling → canonical module, for every module that the architecture may have."""
    encoders = {encoder.name: encoder for encoder in arch.text_encoders}
    found: dict[str, str] = {}
    doubtful: set[str] = set()
    for slot in arch.keymap(SINGLE_FILE).slots.values():
        module = _module(slot.parameter)
        encoder = encoders.get(slot.parameter.partition(".")[0])
        for alias in _spellings(slot, encoder, arch):
            if found.setdefault(alias, module) != module:
                doubtful.add(alias)
    return MappingProxyType({alias: module for alias, module in found.items() if alias not in doubtful})


def _spellings(slot: Slot, encoder: TextEncoder | None, arch: Architecture) -> Iterator[str]:
    module = _module(slot.parameter)
    component, _, name = module.partition(".")
    yield module
    yield name
    if slot.stored.endswith((".weight", ".bias")):  # not a part of a fused tensor, nor a bare parameter
        yield _module(slot.stored)
    if component == "unet":
        yield from _unet_spellings(name, _module(slot.stored).removeprefix(LDM))
    elif encoder:
        yield from _text_encoder_spellings(name, encoder, _kohya_prefixes(arch)[encoder.name])


def _unet_spellings(name: str, ldm: str) -> Iterator[str]:
    yield f"lora_unet_{_flat(name)}"
    yield f"lora_unet_{_flat(ldm)}"
    yield f"lycoris_{_flat(name)}"
    yield f"diffusion_model.{ldm}"
    yield ldm


def _text_encoder_spellings(name: str, encoder: TextEncoder, prefix: str) -> Iterator[str]:
    for spelling in dict.fromkeys((name, name.removeprefix("text_model."))):
        yield f"{encoder.name}.{spelling}"
        yield spelling
        yield f"{prefix}_{_flat(spelling)}"
        yield f"lycoris_{_flat(spelling)}"
        yield f"text_encoders.{encoder.comfy}.transformer.{spelling}"


def _kohya_prefixes(arch: Architecture) -> dict[str, str]:
    """``lora_te`` where there is one text encoder, else ``lora_te1`` and ``lora_te2``."""
    names = [encoder.name for encoder in arch.text_encoders]
    numbers = {"text_encoder": "1", "text_encoder_2": "2"} if len(names) > 1 else {}
    return {"unet": "lora_unet"} | {name: f"lora_te{numbers.get(name, '')}" for name in names}


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _flat(name: str) -> str:
    return name.replace(".", "_")
