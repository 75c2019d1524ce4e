"""Adapters of fused tensors on split ones and the other way round, in every layout of a made-up family.

Oracle: W + ΔW of the tensor that the adapter was made for, which the algorithms' own oracles hold right.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from merging import merge_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.adapters import Dense, Dependent, Factored, algorithm, read_adapter
from lcmmerge.archs import Architecture
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED, View, part
from lcmmerge.bake.fuse import fuse
from lcmmerge.bake.outcome import Settings
from lcmmerge.lora.alignment import term_of
from lcmmerge.lora.combine import CombineSettings, combine
from lcmmerge.merge.plan import plan
from lcmmerge.tensors import open_source

THIRDS = [part(i, i + 1, 3) for i in range(3)]
UNEQUAL = [part(0, 1, 7), part(1, 2, 7), part(2, 3, 7), part(3, 7, 7)]
HEADS = [View(i, i + 1, 3, head=4) for i in range(3)]
TOY = Architecture(
    title="Toy",
    hub="toy/toy",
    modelspec="toy",
    parts=(
        Transformer(
            sentinel="blocks.0.to_q.weight",
            ends=(Row("norm_out.linear.{p}", "final.modulation.{p}", SWAPPED),),
            lists=(
                BlockList(
                    "blocks",
                    (
                        *(Row(f"to_{n}.{{p}}", "qkv.{p}", view) for n, view in zip("qkv", THIRDS, strict=True)),
                        *(Row(f"in_{n}.{{p}}", "linear1.{p}", view) for n, view in zip("qkvm", UNEQUAL, strict=True)),
                        *(Row(f"head_{n}.{{p}}", "heads.{p}", view) for n, view in zip("qkv", HEADS, strict=True)),
                    ),
                    depth=1,
                    letter="B",
                    stored="layers",
                ),
            ),
        ),
    ),
    name="toy",
)
FUSED = {"layers.0.qkv": 12, "layers.0.linear1": 28, "layers.0.heads": 24, "final.modulation": 8}
WIDTH = 8


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("identify", "names"):
        monkeypatch.setattr(sys.modules[f"lcmmerge.archs.{module}"], "architectures", lambda: {"toy": TOY})


def fused_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, rows in FUSED.items():
        state[f"{name}.weight"] = torch.randn(rows, WIDTH, generator=generator)
        state[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return state


def split(fused: dict[str, Tensor]) -> dict[str, Tensor]:
    slots = TOY.keymap("single-file").stored
    return {
        slot.parameter.removeprefix("transformer."): slot.view.take(tensor).contiguous()
        for name, tensor in fused.items()
        for slot in slots[f"model.diffusion_model.{name}"]
    }


def base(folder: Path, layout: str) -> Path:
    state = fused_state()
    save_file(state if layout == "fused" else split(state), folder / f"base-{layout}.safetensors")
    return folder / f"base-{layout}.safetensors"


def roles(kind: str, rows: int, columns: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    lora = {"lora_up.weight": random(rows, 2), "lora_down.weight": random(2, columns), "alpha": torch.tensor(1.0)}
    return {
        "lora": lora,
        "bias": {"diff": random(rows, columns), "diff_b": random(rows)},
        "loha": {
            **{f"hada_w{i}_a": random(rows, 2) for i in (1, 2)},
            **{f"hada_w{i}_b": random(2, columns) for i in (1, 2)},
        },
        "lokr": {"lokr_w1": random(2, 2), "lokr_w2": random(rows // 2, columns // 2)},
        "dora rows": {**lora, "dora_scale": random(rows, 1).abs() + 1},
        "dora columns": {**lora, "dora_scale": random(1, columns).abs() + 1},
        "oft": {"oft_blocks": random(rows // 4, 4, 4), "alpha": torch.tensor(0.1)},
        "ia3": {"weight": random(rows), "on_input": torch.tensor([False])},
    }[kind]


KINDS = ("lora", "bias", "loha", "lokr", "dora rows", "dora columns", "oft", "ia3")


def changed(state: dict[str, Tensor], adapter: Path, strength: float) -> dict[str, Tensor]:
    """W + λΔW of every tensor that an adapter patches, by the names in the adapter."""
    found = dict(state)
    for patch in read_adapter(open_source(adapter)).patches:
        name = f"{patch.key.removeprefix('diffusion_model.')}.{patch.parameter}"
        weight = state[name]
        tensors = {role: info.read() for role, info in patch.roles.items()}
        match algorithm(patch)[1].update(patch, tensors, tuple(weight.shape)):
            case Factored(up, down):
                delta = (up @ down).reshape(weight.shape)
            case Dense(delta):
                pass
            case Dependent(delta_of):
                delta = delta_of(weight)
        found[name] = weight + strength * delta
    return found


def merged(folder: Path, layout: str, adapter: Path) -> dict[str, Tensor]:
    """As split parameters, whatever layout the base has."""
    target = folder / f"{adapter.stem}-{layout}.safetensors"
    fuse(plan(merge_of(base(folder, layout), target, adapter, (0.5, 0.0))), settings=Settings(threads=1))
    state = load_file(target)
    return split(state) if layout == "fused" else state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["fused", "split"])
@pytest.mark.parametrize("made", ["fused", "split"])
def test_an_adapter_is_computed_where_it_was_made(kind: str, layout: str, made: str, tmp_path: Path) -> None:
    state = fused_state() if made == "fused" else split(fused_state())
    tensors = {}
    for name in state:
        if name.endswith(".weight"):
            key = name.removesuffix(".weight")
            for role, tensor in roles(kind, state[name].shape[0], WIDTH).items():
                tensors[f"diffusion_model.{key}.{role}"] = tensor
    save_file(tensors, tmp_path / "made.safetensors")
    expected = changed(state, tmp_path / "made.safetensors", 0.5)
    expected = split(expected) if made == "fused" else expected
    found = merged(tmp_path, layout, tmp_path / "made.safetensors")
    assert found.keys() == expected.keys()
    moved = 0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
        moved += not torch.equal(tensor, split(fused_state())[name])
    assert moved >= 10


def test_the_same_lora_by_either_names(tmp_path: Path) -> None:
    """A fused LoRA, and the same cut into its parts' rows, give the same model; combined, they cancel."""
    fused = {f"diffusion_model.{name}.{role}": tensor for name, rows in FUSED.items()
             for role, tensor in roles("lora", rows, WIDTH).items()}  # fmt: skip
    slots = TOY.keymap("single-file").stored
    cut = {}
    for name, rows in FUSED.items():
        tensors = roles("lora", rows, WIDTH)
        for slot in slots[f"model.diffusion_model.{name}.weight"]:
            key = slot.parameter.removesuffix(".weight")
            cut[f"{key}.lora_up.weight"] = slot.view.take(tensors["lora_up.weight"]).contiguous()
            cut[f"{key}.lora_down.weight"] = tensors["lora_down.weight"].clone()
            cut[f"{key}.alpha"] = tensors["alpha"].clone()
    save_file(fused, tmp_path / "fused.safetensors")
    save_file(cut, tmp_path / "cut.safetensors")
    first, second = (merged(tmp_path, "split", tmp_path / f"{name}.safetensors") for name in ("fused", "cut"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-6, atol=1e-6)
    terms = [term_of(open_source(tmp_path / f"{name}.safetensors"), 0.5) for name in ("fused", "cut")]
    combine(terms, tmp_path / "half-and-half.safetensors", CombineSettings())
    third = merged(tmp_path, "fused", tmp_path / "half-and-half.safetensors")
    for name, tensor in first.items():
        torch.testing.assert_close(third[name], tensor, rtol=2e-3, atol=2e-3)  # its factors are written in fp16
