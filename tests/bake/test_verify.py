"""A merge is what its recipe gives, or the tensor that is not is named."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapterfile import write
from fusing import Files, edited, fuse, load, metadata
from pico import lcm_lora, pico
from safetensors.torch import load_file, save_file

from lcmmerge.bake.outcome import Settings
from lcmmerge.bake.verify import Verified, verify
from lcmmerge.cli import cli
from lcmmerge.errors import FormatError, NotFoundError, VerificationError
from lcmmerge.tensors import open_source

TENSOR = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def run(file: Path, *places: Path, threads: int = 1) -> Verified:
    return verify(open_source(file), [str(place) for place in places], Settings(threads))


def flip(path: Path, name: str) -> None:
    """Change the lowest bit of a tensor's last element, in place."""
    info = open_source(path)[name]
    with path.open("r+b") as file:
        file.seek(info.offset + info.nbytes - info.dtype.itemsize)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shard": 400_000},
        {"rounding_seed": 3, "dtype": "bf16", "drop_ema": True},
        {"layout": "diffusers", "shard": 200_000},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_what_fuse_writes_is_equal(options: dict[str, Any], files: Callable[[str], Files], tmp_path: Path) -> None:
    sd1 = files("sd1")
    if options.get("layout"):
        options = options | {"config_from": sd1.folder()}
    target = tmp_path / ("merged" if options.get("layout") else "merged.safetensors")
    fuse(sd1.base("fp32"), target, sd1.style, sd1.lcm, **options)
    file = tmp_path / "merged.safetensors.index.json" if target.suffix and "shard" in options else target
    found = run(file, sd1.root)
    assert (found.different, found.stale) == ((), ())
    assert found.tensors == len(load(target if target.exists() else tmp_path))
    found.check()


def test_every_kind_of_term(files: Callable[[str], Files], tmp_path: Path) -> None:
    """A tuned checkpoint with a base of its own, block weights, and an adapter with keys that had no home."""
    sd1 = files("sd1")
    fuse(sd1.base("fp32"), tmp_path / "tuned.safetensors", sd1.style)
    strangers = {f"lora_unet_nowhere.lora_{role}.weight": torch.ones(1, 1) for role in ("up", "down")}
    write(tmp_path / "odd.safetensors", load_file(sd1.style) | strangers)
    fuse(
        sd1.base(),
        tmp_path / "merged.safetensors",
        tmp_path / "tuned.safetensors",
        sd1.lcm,
        tuned_from=sd1.base("fp32"),
        adapters=((tmp_path / "odd.safetensors", -0.3),),
        block_weights={"lcm": "IN00-IN05=0.5,M00=0"},
        allow_unmatched=True,
    )
    found = run(tmp_path / "merged.safetensors", tmp_path, sd1.root)
    assert (found.different, found.stale) == ((), ())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_flipped_bit_is_found_and_named(
    threads: int, merged: Path, files: Callable[[str], Files], tmp_path: Path
) -> None:
    before = load(merged)[TENSOR].float()
    flip(merged, TENSOR)
    found = run(merged, files("sd1").root, threads=threads)
    (different,) = found.different
    assert different.name == TENSOR
    assert different.largest == float((load(merged)[TENSOR].float() - before).abs().max()) > 0
    with pytest.raises(VerificationError, match=f"1 of {found.tensors} tensors .* {TENSOR}"):
        found.check()


def test_first_and_last_byte_count(merged: Path, files: Callable[[str], Files]) -> None:
    names = list(open_source(merged).tensors)
    for name in (names[0], names[-1]):
        flip(merged, name)
    assert {item.name for item in run(merged, files("sd1").root).different} == {names[0], names[-1]}


def test_nan_is_infinitely_far_and_json_ready(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    damaged = load(merged)[TENSOR].clone()
    damaged[0, 0] = torch.nan
    save_file(load_file(merged) | {TENSOR: damaged}, tmp_path / "nan.safetensors", metadata(merged))
    (different,) = run(tmp_path / "nan.safetensors", files("sd1").root).different
    assert different.largest == torch.inf
    assert json.loads(json.dumps(different.as_dict(), allow_nan=False))["largest"] is None


def test_more_fewer_and_other_tensors(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    tensors = load_file(merged)
    first, second = sorted(tensors)[:2]
    changed = {**tensors, "more": torch.ones(3), second: tensors[second].float()}
    del changed[first]
    save_file(changed, tmp_path / "other.safetensors", metadata(merged))
    found = run(tmp_path / "other.safetensors", files("sd1").root)
    assert {item.name: item.reason for item in found.different} == {
        "more": "not in the merge",
        first: "missing",
        second: "dtype or shape",
    }


def test_a_hash_that_is_not_the_tensors(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    """The reference library writes in an order of its own: the tensors are equal, the bytes are not the recorded."""
    wrong = metadata(merged) | {"modelspec.hash_sha256": "0x" + "1" * 64}
    save_file(load_file(merged), tmp_path / "again.safetensors", wrong)
    found = run(tmp_path / "again.safetensors", files("sd1").root)
    assert (found.different, found.stale) == ((), ("again.safetensors",))
    with pytest.raises(VerificationError, match=r"hash recorded in again\.safetensors"):
        found.check()


def test_a_missing_source_is_named(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"'{files('sd1').base().name}' is not here") as caught:
        run(merged, tmp_path)
    assert "--source" in caught.value.hint
    shutil.copy(files("sd1").base(), tmp_path)
    with pytest.raises(NotFoundError, match=files("sd1").style.name):
        run(merged, tmp_path)


def test_another_file_of_the_same_name(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    sd1 = files("sd1")
    edited(sd1.style, tmp_path / sd1.style.name, **{"lora_te_more.alpha": torch.ones(())})
    with pytest.raises(VerificationError, match=f"is not the {sd1.style.name} that was merged"):
        run(merged, tmp_path, sd1.base(), sd1.lcm)
    found = run(merged, tmp_path, sd1.root)  # the right one is found where a wrong one came first
    assert not found.different


def test_a_source_under_another_name(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    sd1 = files("sd1")
    renamed = tmp_path / "renamed.safetensors"
    shutil.copy(sd1.style, renamed)
    assert not run(merged, renamed, sd1.base(), sd1.lcm).different


def test_what_is_no_merge_of_ours(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="records no merge recipe"):
        run(files("sd1").base(), tmp_path)
    recipe = json.loads(metadata(merged)["sd_merge_recipe"])
    for damaged, what in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps(recipe | {"type": "webui"}), "was made by webui"),
        (json.dumps(recipe | {"dtype": "F17"}), "damaged"),
        (json.dumps(recipe | {"terms": [{"term": "style"}]}), "damaged"),
        (json.dumps(recipe | {"base": None}), "damaged"),
        (json.dumps(recipe | {"base": {"name": "../victim", "sha256": None}}), "damaged"),
        (json.dumps(recipe | {"base": {"name": "b", "sha256": "0"}}), "damaged"),
        (json.dumps(recipe | {"terms": [recipe["terms"][0] | {"lambda": float("nan")}]}), "damaged"),
        (json.dumps(recipe | {"rounding_seed": "x"}), "damaged"),
        (json.dumps(recipe | {"layout": "../victim"}), "damaged"),
    ):
        save_file({"a": torch.ones(1)}, tmp_path / "bad.safetensors", {"sd_merge_recipe": damaged})
        with pytest.raises(FormatError, match=what):
            run(tmp_path / "bad.safetensors", tmp_path)


def test_nothing_is_written(merged: Path, files: Callable[[str], Files], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*")), merged.read_bytes()
    run(merged, files("sd1").root)
    assert (sorted(tmp_path.rglob("*")), merged.read_bytes()) == before


def test_the_variant_that_was_merged_is_the_one_that_is_compared(tmp_path: Path) -> None:
    model = pico("sd1")
    folder = model.folder(tmp_path / "base", "fp32")
    copy.deepcopy(model.pipeline).to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    lcm = lcm_lora(tmp_path / "lcm.safetensors", "sd1")
    cli.main(
        ["fuse", str(folder), "--lcm", str(lcm), "--variant", "fp16", "-o", str(tmp_path / "out")],
        standalone_mode=False,
    )
    found = verify(open_source(tmp_path / "out"), [str(tmp_path)])
    found.check()
    assert found.tensors == len(open_source(folder, "fp16").tensors)


def test_an_adapter_and_how_its_training_began(files: Callable[[str], Files], tmp_path: Path) -> None:
    """Both files are the source: another beginning is another source."""
    base, adapter = files("sd1").base("fp32"), tmp_path / "adapter"
    (adapter / "pissa_init").mkdir(parents=True)
    module = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": "pissa"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    trained, began = ({f"{module}.lora_A.weight": torch.randn(2, 8), f"{module}.lora_B.weight": torch.randn(8, 2)}
                      for _ in range(2))  # fmt: skip
    save_file(trained, adapter / "adapter_model.safetensors")
    save_file(began, adapter / "pissa_init" / "adapter_model.safetensors")
    target = tmp_path / "merged.safetensors"
    fuse(base, target, adapter, strengths=(0.5, 0))
    products = [state[f"{module}.lora_B.weight"] @ state[f"{module}.lora_A.weight"] for state in (trained, began)]
    torch.testing.assert_close(load(target)[TENSOR], load(base)[TENSOR] + 0.5 * 2 * (products[0] - products[1]))
    found = run(target, tmp_path, base.parent)
    assert (found.different, found.stale) == ((), ())
    save_file(trained, adapter / "pissa_init" / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match="its sha256 differs"):
        run(target, tmp_path, base.parent)
