"""Searches for tests: a plan in which every λ is 1, and the field over its base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapterfile import write
from fusing import Files
from merging import merge_of
from pico import canonical_state
from torch import Tensor

from lcmmerge.bake.tensors import merged
from lcmmerge.draw.load import Pipeline, load_pipeline
from lcmmerge.errors import LcmMergeError
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.plan import plan as plan_merge
from lcmmerge.output import Output
from lcmmerge.search.blocks import Asked, block_axes
from lcmmerge.search.field import Field
from lcmmerge.search.request import PreparedSearch, SearchRequest

CPU = torch.device("cpu")
ROUNDING = {"fp32": 2.0**-23, "fp16": 2.0**-10}  # two neighbours' largest distance, relative
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # 8×8
OUT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"  # 32×32, with a bias
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"  # 32×64×3×3
NORM = "lora_unet_mid_block_attentions_0_norm"
TEXT = "lora_te_text_model_encoder_layers_2_mlp_fc1"  # 32×16


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# By algorithm: a file that has it, for Stable Diffusion 1's pico.
ADAPTERS = {
    "lora": {
        f"{QUERY}.lora_up.weight": noise(8, 3), f"{QUERY}.lora_down.weight": noise(3, 8),
        f"{CONV}.lora_up.weight": noise(32, 3, 1, 1), f"{CONV}.lora_down.weight": noise(3, 64, 3, 3),
        f"{CONV}.alpha": torch.tensor(2.0),
        f"{TEXT}.lora_up.weight": noise(32, 2), f"{TEXT}.lora_down.weight": noise(2, 16),
    },
    "lora_bias": {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_{part}": tensor
        for part, tensor in {"A.weight": noise(3, 32), "B.weight": noise(32, 3), "B.bias": noise(32)}.items()
    },
    "dora": {
        f"{QUERY}.lora_up.weight": noise(8, 3), f"{QUERY}.lora_down.weight": noise(3, 8),
        f"{QUERY}.dora_scale": 1 + noise(1, 8),
        f"{CONV}.lora_up.weight": noise(32, 3, 1, 1), f"{CONV}.lora_down.weight": noise(3, 64, 3, 3),
        f"{CONV}.dora_scale": 1 + noise(32, 1, 1, 1),
    },
    "loha": {
        f"{OUT}.hada_w1_a": noise(32, 4), f"{OUT}.hada_w1_b": noise(4, 32),
        f"{OUT}.hada_w2_a": noise(32, 4), f"{OUT}.hada_w2_b": noise(4, 32), f"{OUT}.alpha": torch.tensor(2.0),
    },
    "lokr": {f"{OUT}.lokr_w1": noise(4, 4), f"{OUT}.lokr_w2_a": noise(8, 2), f"{OUT}.lokr_w2_b": noise(2, 8)},
    "full": {f"{QUERY}.diff": noise(8, 8), f"{OUT}.diff": noise(32, 32), f"{OUT}.diff_b": noise(32)},
    "norm": {f"{NORM}.w_norm": noise(32), f"{NORM}.b_norm": noise(32)},
    "oft": {f"{OUT}.oft_blocks": noise(8, 4, 4), f"{TEXT}.oft_blocks": noise(8, 4, 4)},
    "boft": {f"{OUT}.oft_blocks": noise(2, 8, 4, 4)},
    "ia3": {f"{OUT}.weight": noise(32), f"{OUT}.on_input": torch.tensor(False)},
    "glora": {
        f"{OUT}.a1.weight": noise(32, 3), f"{OUT}.a2.weight": noise(3, 32),
        f"{OUT}.b1.weight": noise(32, 3), f"{OUT}.b2.weight": noise(3, 32),
    },
}  # fmt: skip


KINDS = [
    pytest.param(tuple(ADAPTERS), id="all at once"),
    *(pytest.param((kind,), id=kind, marks=pytest.mark.e2e) for kind in ADAPTERS),
]


def adapter(kind: str, folder: Path) -> Path:
    return write(folder / f"{kind}.safetensors", ADAPTERS[kind]).path


def planned(base: Path, style: Path | None, lcm: Path | None, **fields: Any) -> Plan:
    asked = merge_of(
        str(base), style=str(style) if style else None, strengths=(1.0, 1.0 if lcm else 0.0),
        lcm=str(lcm) if lcm else None, **fields,
    )  # fmt: skip
    return plan_merge(asked)


def pipeline_of(plan: Plan, configs: Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    return load_pipeline(plan.base, configs, dtype, CPU)


def searches(monkeypatch: pytest.MonkeyPatch) -> list[PreparedSearch]:
    """What is searched from now on: it is prepared, and then refused."""
    found: list[PreparedSearch] = []

    def refuse(prepared: PreparedSearch, _: Output) -> None:
        found.append(prepared)
        raise LcmMergeError("not searched", "this is a test")

    monkeypatch.setattr("lcmmerge.search.run.search_prepared", refuse)
    return found


def style_of(prepared: PreparedSearch) -> dict[str, Tensor]:
    """What the first term reaches, merged with every λ at 1."""
    with merged(prepared.plan) as read:
        return {name: read(name) for name, items in prepared.plan.contributions.items() if items[0].term == 0}


def field_of(
    inputs: Files, dtype: str = "fp32", style: Path | None = None, blocks: Asked | None = None, **fields: Any
) -> Field:
    """The pico's field of two terms: its style, or another, and its LCM-LoRA; ``blocks``: factors to search."""
    plan = planned(inputs.base(dtype), style or inputs.style, inputs.lcm, **fields)
    return Field(plan, pipeline_of(plan, inputs.folder()), block_axes(blocks or {}, plan))


def weights(field: Field) -> dict[str, Tensor]:
    """Canonical name → the live weight."""
    components = {name: getattr(field.pipeline, name) for name in field.plan.base.components}
    return canonical_state(components)


def assert_baked(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: str) -> None:
    """Each weight is the baked one or, where a sum's last bit differs, its neighbour in the base's dtype.

    Float32's sums may differ by a few of its bits where W and λD nearly cancel.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor = tensor.float()
        scale = tensor.abs() if dtype == "fp16" else 4 * tensor.abs().max()
        assert bool(((found[name] - tensor).abs() <= ROUNDING[dtype] * scale + 1e-7).all()), name


def state(pipeline: Pipeline, components: tuple[str, ...] = ("unet", "vae", "text_encoder")) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {
        f"{component}.{name}": tensor.clone()
        for component in components
        for name, tensor in getattr(pipeline, component).state_dict().items()
    }


def requested(inputs: Files, folder: Path, **fields: Any) -> SearchRequest:
    """The smallest search of a pico: two prompts, one step, four cells."""
    merge = merge_of(str(inputs.folder("fp32")), style=str(inputs.style), lcm=str(inputs.lcm), accelerator="lcm")
    asked = {"axes": {"style": (0.5, 1.0), "lcm": (0.5, 1.0)}, "steps": 1, "count": 1, "size": (64, 64), "guidance": 1,
             "teacher_steps": 2}  # fmt: skip
    return SearchRequest(merge, folder / "work", ("a fox", "a hat"), **(asked | fields))  # type: ignore[arg-type]


def impatient() -> None:
    """In this process a worker is dead after three seconds of silence."""
    from lcmmerge.search import database

    database.HEARTBEAT, database.GRACE = 1, 3


def impatiently(*words: str) -> None:
    """The command line, for a process of its own."""
    from forked import command

    impatient()
    command(*words)


def searched(asked: SearchRequest) -> None:
    """For a process of its own: it prints how many rows it found."""
    from lcmmerge.search.run import search

    impatient()
    sys.stdout.write(f"{len(search(asked).scored.rows)}\n")
