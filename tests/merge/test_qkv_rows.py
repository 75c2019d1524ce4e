"""MiniMax-H3's q, k and v head by head. Oracles: diffusers' converters of files and of adapters, sums in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MiniMaxH3Transformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_minimax_h3_lora_to_diffusers as to_diffusers
from families import CASES, converted, families, folder, single_file, state_of, stored
from recipefile import TEXT, run
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge import Merge
from lcmmerge.archs import View, identify
from lcmmerge.archs.rows import order_of, ordered
from lcmmerge.archs.views import tiles
from lcmmerge.errors import OptionError
from lcmmerge.tensors import open_source

Cli = Callable[..., Any]
State = dict[str, Tensor]
NAME, RANK, WIDTH = "minimax_h3", 2, 16
HEADS, DIM = (CASES[NAME].tiny[each] for each in ("num_attention_heads", "attention_head_dim"))
QKV, INDEX = "attn.qkv_proj.weight", "model.safetensors.index.json"


def alternating(stacked: State) -> State:
    """As MiniMax's own shards have the same numbers."""
    return {
        key: t.unflatten(0, (3, HEADS, -1)).transpose(0, 1).flatten(0, 2) if key.endswith(QKV) else t
        for key, t in stacked.items()
    }


def shards(path: Path, state: State) -> Path:
    """In two files with an index."""
    path.mkdir()
    names = {key: f"model-0000{1 + (number > 9)}-of-00002.safetensors" for number, key in enumerate(state)}
    for file in set(names.values()):
        save_file({key: state[key].contiguous() for key, at in names.items() if at == file}, path / file)
    (path / INDEX).write_text(json.dumps({"weight_map": names}))
    return path / INDEX


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return shards(tmp_path / "official", alternating(stored(NAME, state_of(NAME))))


def lora(path: Path, *modules: str, begin: str = "diffusion_model.") -> tuple[Path, dict[str, Tensor]]:
    """Of the first block's modules, and ΔW in float64 in the order in which most programs train it."""
    state, generator = state_of(NAME), torch.Generator().manual_seed(3)
    sizes = stored(NAME, state) | {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
    file, delta = {}, {}
    for module in modules:
        rows, columns = sizes[f"{module}.weight"].shape
        up, down = torch.randn(rows, RANK, generator=generator), torch.randn(RANK, columns, generator=generator)
        file |= {f"{begin}{module}.lora_up.weight": up, f"{begin}{module}.lora_down.weight": down}
        delta[f"{module}.weight"] = up.double() @ down.double()
    save_file(file, path)
    return path, delta


def wanted_of(delta: dict[str, Tensor], strength: float) -> State:
    """The merged weights by diffusers' names."""
    state = {key.removeprefix("transformer."): tensor.double() for key, tensor in state_of(NAME).items()}
    native = {key: torch.zeros_like(tensor) for key, tensor in stored(NAME, state_of(NAME)).items()}
    own = {key: tensor for key, tensor in delta.items() if key in state}
    through = converted(NAME, native | {key: tensor for key, tensor in delta.items() if key not in own})
    return {key: tensor + strength * (through[key] + own.get(key, 0)) for key, tensor in state.items()}


def read(out: Path) -> State:
    """A file's tensors, or its shards'."""
    files = [out] if out.is_file() else out.parent.glob(f"{out.stem}-*-of-*.safetensors")
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def assert_close(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key].double(), tensor, rtol=1e-6, atol=1e-6, msg=key)


STYLES = {
    "fused": ("blocks.0.attn.qkv_proj", "blocks.1.mlp.fc1"),
    "split": ("transformer_blocks.0.attn.to_k", "token_refiner.refiner_blocks.0.attn.to_v"),
}


@pytest.mark.parametrize("style", STYLES)
def test_a_base_head_by_head(style: str, official: Path, tmp_path: Path, cli: Cli) -> None:
    begin = "transformer." if style == "split" else "diffusion_model."
    path, delta = lora(tmp_path / "style.safetensors", *STYLES[style], begin=begin)
    out, rows = tmp_path / "out.safetensors", ("--qkv-rows", "interleaved")
    done = cli("fuse", official, path, "--lambda", "0.5", "0", "-o", out, "--max-shard-size", "1GB", *rows)
    assert done.code == 0, done.err
    assert "alternate head by head" in done.err
    found = load_file(out)
    assert_close(converted(NAME, found, qkv_layout="interleaved"), wanted_of(delta, 0.5))
    before = alternating(stored(NAME, state_of(NAME)))
    assert sum(not torch.equal(found[key], before[key]) for key in before) == len(delta)
    done = cli("verify", out, "--source", official, "--source", path)
    assert done.code == 0, done.err
    again = tmp_path / "again.safetensors"  # the record tells
    done = cli("fuse", out, path, "--lambda", "0.5", "0", "-o", again, "--force")
    assert done.code == 0, done.err
    assert_close(converted(NAME, load_file(again), qkv_layout="interleaved"), wanted_of(delta, 1.0))
    assert order_of(identify(open_source(again))) == "interleaved"


def test_shards_that_are_said_to_be_stacked(tmp_path: Path, cli: Cli) -> None:
    base = shards(tmp_path / "base", stored(NAME, state_of(NAME)))
    path, delta = lora(tmp_path / "style.safetensors", *STYLES["fused"])
    out = tmp_path / "out.safetensors"
    cuts = ("--max-shard-size", "20KB", "--qkv-rows", "stacked")
    done = cli("fuse", base, path, "--lambda", "0.5", "0", "-o", out, *cuts)
    assert done.code == 0, done.err
    assert "head by head" not in done.err
    assert_close(converted(NAME, read(out)), wanted_of(delta, 0.5))
    whole = tmp_path / "out.safetensors.index.json"
    assert cli("verify", whole, "--source", base, "--source", path).code == 0
    assert order_of(identify(open_source(whole))) == "stacked"


def test_nothing_is_guessed_of_shards(official: Path, tmp_path: Path, cli: Cli) -> None:
    path, _ = lora(tmp_path / "style.safetensors", "blocks.0.mlp.fc2")
    single = single_file(tmp_path / "single.safetensors", NAME, state_of(NAME))
    out = ("-o", tmp_path / "out.safetensors")
    for line in (
        ("fuse", official, path, "--lambda", "1", "0", *out),
        ("fuse", official, path, "--lambda", "1", "0", *out, "--dry-run"),
        ("fuse", single, official, "--lambda", "1", "0", *out),
        ("extract", official, single, *out),
        ("extract", single, official, *out),
    ):
        done = cli(*line)
        done.assert_fault(3, "one below another, or head by head")
        assert "--qkv-rows" in done.err
    assert not list(tmp_path.glob("out*"))
    done = cli("inspect", official)
    assert done.code == 0 and "MiniMax-H3" in done.out
    assert "--qkv-rows" in done.err


def test_only_where_there_are_two_orders(tmp_path: Path, cli: Cli) -> None:
    path, _ = lora(tmp_path / "style.safetensors", "blocks.0.mlp.fc2")
    line = (path, "--lambda", "1", "0", "-o", tmp_path / "out", "--qkv-rows", "interleaved")
    cli("fuse", folder(tmp_path / "base", NAME, state_of(NAME)), *line).assert_fault(2, "one order alone")
    cli("fuse", single_file(tmp_path / "flux", "flux1", state_of("flux1")), *line).assert_fault(2, "one order alone")
    with pytest.raises(OptionError, match="rows 'x': unknown"):
        Merge("base", qkv_rows="x")


def test_rows_that_are_not_of_whole_heads(official: Path, tmp_path: Path, cli: Cli) -> None:
    state = alternating(stored(NAME, state_of(NAME)))
    state["blocks.1.attn.q_norm.weight"] = torch.ones(DIM + 1)
    base = shards(tmp_path / "damaged", state)
    path, _ = lora(tmp_path / "style.safetensors", "blocks.0.mlp.fc2")
    line = ("--lambda", "1", "0", "-o", tmp_path / "out.safetensors", "--qkv-rows", "interleaved")
    cli("fuse", base, path, *line).assert_fault(1, f"whole heads of {DIM + 1} rows")


@pytest.mark.parametrize("layout", ["single-file", "folder", "official"])
def test_an_adapter_made_head_by_head(layout: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """DiffSynth's, of the shards as they are. Oracle: diffusers' reading of it, which takes heads to be 128 long."""
    config = CASES[NAME].tiny | {"attention_head_dim": 128}
    torch.manual_seed(0)
    model = MiniMaxH3Transformer3DModel(**config)
    weights = {f"transformer.{key}": tensor for key, tensor in model.state_dict().items()}
    if layout == "folder":
        base = tmp_path / "base"
        model.save_pretrained(base)
    else:
        base = single_file(tmp_path / "base.safetensors", NAME, weights)
    rows: tuple[str, ...] = ()
    if layout == "official":
        base, rows = shards(tmp_path / "base", alternating(stored(NAME, weights))), ("--qkv-rows", "interleaved")
    modules = {"blocks.0.attn.qkv_proj": (768, 16), "token_refiner.blocks.0.mlp.fc1": (40, 16)}
    file: State = {}
    for module, (outputs, inputs) in modules.items():
        file[f"{module}.lora_A.default.weight"] = torch.randn(RANK, inputs)
        file[f"{module}.lora_B.default.weight"] = torch.randn(outputs, RANK)
    save_file(file, tmp_path / "style.safetensors")
    options = ("--lambda", "0.5", "0", "--alpha", "style", RANK, *rows)
    out = tmp_path / "out.safetensors"
    done = cli("fuse", base, tmp_path / "style.safetensors", *options, "-o", out)
    assert done.code == 0, done.err
    found = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in read(out).items()}
    if layout != "folder":
        monkeypatch.setitem(CASES[NAME].tiny, "attention_head_dim", 128)  # of the converter's config
        found = converted(NAME, found, qkv_layout="interleaved" if layout == "official" else "stacked")
    found = {key.removeprefix("transformer."): tensor for key, tensor in found.items()}  # a folder's
    factors = to_diffusers(dict(file))
    wanted = {key.removeprefix("transformer."): tensor.double() for key, tensor in weights.items()}
    for key in factors:
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            delta = factors[f"{module}.lora_B.weight"].double() @ factors[key].double()
            wanted[f"{module.removeprefix('transformer.')}.weight"] += 0.5 * delta
    assert_close(found, wanted)


def test_such_an_adapter_needs_a_base_to_be_combined(tmp_path: Path, cli: Cli) -> None:
    file = {"blocks.0.attn.qkv_proj.lora_A.default.weight": torch.ones(1, WIDTH),
            "blocks.0.attn.qkv_proj.lora_B.default.weight": torch.ones(3 * HEADS * DIM, 1)}  # fmt: skip
    save_file(file, tmp_path / "a.safetensors")
    line = ("combine", tmp_path / "a.safetensors", "1", "--alpha", "a", "1", "-o", tmp_path / "out.safetensors")
    cli(*line).assert_fault(3, "q, k and v head by head")
    base = single_file(tmp_path / "base.safetensors", NAME, state_of(NAME))
    done = cli(*line, "--base", base, "--dtype", "fp32")
    assert done.code == 0, done.err
    ups = {key: tensor for key, tensor in load_file(tmp_path / "out.safetensors").items() if "lora_B" in key}
    assert len(ups) == 3


def test_a_pruned_file(tmp_path: Path, cli: Cli) -> None:
    """As ComfyUI's: a table for the timestep's embedder, and narrow modulations."""
    state = stored(NAME, state_of(NAME))
    table = {key: t[:, :2] if "adaln_proj.linear.weight" in key else t for key, t in state.items()}
    table = {key: tensor.contiguous() for key, tensor in table.items() if not key.startswith("time_embedder.")}
    save_file(table | {"adaln_t_table": torch.ones(5, 2)}, tmp_path / "base.safetensors")
    model = identify(open_source(tmp_path / "base.safetensors"))
    assert (model.arch.name, set(model.leftovers)) == (NAME, set())
    path, delta = lora(tmp_path / "style.safetensors", *STYLES["fused"])
    done = cli("fuse", tmp_path / "base.safetensors", path, "--lambda", "1", "0", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["adaln_t_table"], torch.ones(5, 2))
    for key, change in delta.items():
        torch.testing.assert_close(found[key].double(), table[key].double() + change, rtol=1e-6, atol=1e-6)
    path, _ = lora(tmp_path / "wide.safetensors", "blocks.0.adaln_proj.linear")
    done = cli("fuse", tmp_path / "base.safetensors", path, "--lambda", "1", "0", "-o", tmp_path / "no.safetensors")
    done.assert_fault(3, "blocks.0.adaln_proj.linear")


def test_the_description_tells_it() -> None:
    merge = Merge("base.index.json", {"style": ("style.safetensors", 0.5)}, qkv_rows="interleaved")
    assert Merge.from_dict(json.loads(json.dumps(merge.to_dict()))).qkv_rows == "interleaved"
    assert "--qkv-rows interleaved" in merge.command()
    assert "qkv_rows" not in Merge("base", {"style": ("style.safetensors", 0.5)}).to_dict()


def test_a_recipe(official: Path, tmp_path: Path) -> None:
    path, delta = lora(tmp_path / "style.safetensors", *STYLES["fused"])
    text = TEXT.replace("  lcm: {{reference: {lcm}, accelerator: lcm}}\n", "").replace("0.8, lcm: 1.0", "0.5")
    recipe = tmp_path / "h3.yaml"
    recipe.write_text(text.format(base=official, style=path) + "  qkv_rows: interleaved\n")
    run(recipe, tmp_path / "run")
    (index,) = (tmp_path / "run").rglob("*.index.json")
    found = read(index.with_name(index.name.removesuffix(".index.json")))
    assert_close(converted(NAME, found, qkv_layout="interleaved"), wanted_of(delta, 0.5))


def test_an_order_can_be_taken_back(official: Path) -> None:
    model = identify(open_source(official))
    assert order_of(model) is None
    there = ordered(model, "interleaved")
    assert order_of(there) == "interleaved" and order_of(ordered(there, "stacked")) == "stacked"
    views = [there.parameters[f"transformer.transformer_blocks.0.attn.to_{n}.weight"].slot.view for n in "qkv"]
    assert views == [View(number, number + 1, 3, DIM) for number in range(3)]
    assert tiles(views, [(HEADS * DIM, WIDTH)] * 3)
    assert families()[NAME].denoiser.by_head
