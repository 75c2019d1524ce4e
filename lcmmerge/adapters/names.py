"""One tensor name → which grammar it is written in, which module it patches, and as what.

    kohya      lora_unet_…_to_q.lora_down.weight              also .alpha and .dora_scale
    peft       base_model.model.….to_q.lora_A.default.weight  with or without the adapter's name
    diffusers  unet.….to_q.lora.down.weight, ….q_proj.lora_linear_layer.down.weight
    processor  ….attn1.processor.to_q_lora.down.weight        older diffusers, also behind kohya's names; XLabs
    cloneofsimo  unet:0:down                                  lora_diffusion, which numbers the modules
    lycoris    ….hada_w1_a, ….lokr_w1, ….oft_blocks, ….diff

Each algorithm says which endings are its own; here is what they have in common.
Sources: kohya-ss/sd-scripts networks/lora.py; huggingface/peft utils/save_and_load.py; huggingface/diffusers
utils/state_dict_utils.py; KohakuBlueleaf/LyCORIS modules/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from lcmmerge.adapters.base import SHARED, algorithms

SCALES = {"alpha": (SHARED, "alpha"), "scalar": (SHARED, "scalar")}  # of every algorithm
PEFT = "peft"
PROCESSOR = re.compile(r"(?P<key>.+)_lora(?P<stream>[12]?)\.(?P<role>up|down)\.weight")
NUMBERED = re.compile(r"(?P<key>(?:unet|text_encoder):\d+):(?P<role>up|down)")
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Name:
    """A tensor's name in an adapter file, taken apart."""

    grammar: str
    key: str
    role: str


def parse_name(name: str) -> Name | None:
    """None for a name of no grammar."""
    if name.endswith(".diff_m"):  # of a block's or the head's modulation, a parameter without a module
        return Name("lycoris", f"{name.removesuffix('.diff_m')}.modulation", "diff")
    parts = name.removeprefix(PEFT_PREFIX).split(".")
    for length in range(min(3, len(parts) - 1), 0, -1):
        if found := _endings().get(".".join(parts[-length:])):
            grammar = PEFT if name.startswith(PEFT_PREFIX) else found[0]
            return Name(grammar, ".".join(parts[:-length]), found[1])
    numbered = NUMBERED.fullmatch(name)
    return _peft(name) or _processor(name) or (numbered and Name("cloneofsimo", numbered["key"], numbered["role"]))


@cache
def _endings() -> Mapping[str, tuple[str, str]]:
    """How a name may end → its grammar and the tensor's role, for all grammars but PEFT's."""
    spelled = [adapter.names for adapter in algorithms().values()]
    return MappingProxyType(
        SCALES
        | {
            ending: (grammar, role)
            for names in spelled
            for grammar in names.keys() - {PEFT}
            for ending, role in names[grammar].items()
        }
    )


@cache
def _peft_endings() -> Mapping[str, str]:
    """``lora_B.bias`` → ``up_bias``."""
    spelled = (adapter.names.get(PEFT, {}) for adapter in algorithms().values())
    return MappingProxyType({ending: role for names in spelled for ending, role in names.items()})


@cache
def _peft_pattern() -> re.Pattern[str]:
    """``KEY.lora_B.bias``, ``KEY.lora_B.default.bias``, ``KEY.hada_w1_a.default``."""
    roots = sorted({ending.partition(".")[0] for ending in _peft_endings()}, reverse=True)  # hada_w1_a before hada_w1
    return re.compile(
        rf"(?P<key>.+)\.(?P<root>{'|'.join(map(re.escape, roots))})"
        r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?P<kind>\.(?:weight|bias))?"
    )


def _peft(name: str) -> Name | None:
    match = _peft_pattern().fullmatch(name)
    role = _peft_endings().get(match["root"] + (match["kind"] or "")) if match else None
    return Name(PEFT, match["key"].removeprefix(PEFT_PREFIX), role) if match and role else None


def _processor(name: str) -> Name | None:
    """The layer that a processor's LoRA is for: ``to_q`` in a U-Net, ``q_proj`` in a text encoder."""
    match = PROCESSOR.fullmatch(name)
    if match is None:
        return None
    key = re.sub(r"[._]processor([._]to_\w+)$", r"\1", match["key"])
    key = re.sub(r"(self_attn[._])to_(q|k|v|out)$", r"\1\2_proj", key)
    key = re.sub(r"([._])to_out$", r"\1to_out\g<1>0", key)
    return Name("processor", key + match["stream"], match["role"])  # XLabs': 1 is the image's, 2 the text's
