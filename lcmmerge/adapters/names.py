"""One tensor name → which grammar it is written in, which module it patches, and as what.

    kohya      lora_unet_…_to_q.lora_down.weight              also .alpha and .dora_scale
    peft       base_model.model.….to_q.lora_A.default.weight  with or without the adapter's name
    diffusers  unet.….to_q.lora.down.weight, ….q_proj.lora_linear_layer.down.weight
    processor  ….attn1.processor.to_q_lora.down.weight        older diffusers
    lycoris    ….hada_w1_a, ….lokr_w1, ….oft_blocks, ….diff

Sources: kohya-ss/sd-scripts networks/lora.py; huggingface/peft utils/save_and_load.py; huggingface/diffusers
utils/state_dict_utils.py; KohakuBlueleaf/LyCORIS modules/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHARED = ""  # the grammar of a suffix that several use

HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
WHOLE = ("diff", "diff_b", "w_norm", "b_norm")

SUFFIXES: dict[str, tuple[str, str]] = {
    "alpha": (SHARED, "alpha"),
    "dora_scale": (SHARED, "dora_scale"),
    "scalar": (SHARED, "scalar"),
    "lora_up.weight": ("kohya", "up"),
    "lora_down.weight": ("kohya", "down"),
    "lora_mid.weight": ("kohya", "mid"),
    "lora.up.weight": ("diffusers", "up"),
    "lora.down.weight": ("diffusers", "down"),
    "lora_linear_layer.up.weight": ("diffusers", "up"),
    "lora_linear_layer.down.weight": ("diffusers", "down"),
    **{f"{role}.weight": ("lycoris", role) for role in ("a1", "a2", "b1", "b2")},
    **{role: ("lycoris", role) for role in (*HADA, *LOKR, *WHOLE, "oft_blocks", "rescale", "on_input")},
}

PEFT_ROLES: dict[tuple[str, str | None], str] = {
    ("lora_A", "weight"): "down",
    ("lora_B", "weight"): "up",
    ("lora_B", "bias"): "up_bias",
    ("lora_magnitude_vector", None): "magnitude",
    ("lora_magnitude_vector", "weight"): "magnitude",
    ("oft_R", "weight"): "oft_R",
    **{(role, None): role for role in ("boft_R", "boft_s", "ia3_l", *HADA, *LOKR)},
}
PEFT = re.compile(
    rf"(?P<key>.+)\.(?P<root>{'|'.join(sorted({root for root, _ in PEFT_ROLES}, reverse=True))})"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
)
PROCESSOR = re.compile(r"(?P<attention>.+?)(?:\.processor)?\.to_(?P<name>q|k|v|out)_lora\.(?P<role>up|down)\.weight")
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Name:
    grammar: str
    key: str
    role: str


def parse_name(name: str) -> Name | None:
    """None for a name of no grammar."""
    parts = name.removeprefix(PEFT_PREFIX).split(".")
    for length in range(min(3, len(parts) - 1), 0, -1):
        if found := SUFFIXES.get(".".join(parts[-length:])):
            grammar = "peft" if name.startswith(PEFT_PREFIX) else found[0]
            return Name(grammar, ".".join(parts[:-length]), found[1])
    return _peft(name) or _processor(name)


def _peft(name: str) -> Name | None:
    match = PEFT.fullmatch(name)
    role = PEFT_ROLES.get((match["root"], match["kind"])) if match else None
    return Name("peft", match["key"].removeprefix(PEFT_PREFIX), role) if match and role else None


def _processor(name: str) -> Name | None:
    """The layer that a processor's LoRA is for: ``to_out.0`` in a UNet, ``out_proj`` in a text encoder."""
    match = PROCESSOR.fullmatch(name)
    if match is None:
        return None
    attention, short = match["attention"], match["name"]
    spelling = "{}_proj" if attention.endswith("self_attn") else "to_{}"
    layer = "to_out.0" if spelling.format(short) == "to_out" else spelling.format(short)
    return Name("processor", f"{attention}.{layer}", match["role"])
