"""What headers tell; sources are names and shapes alone, so there is no weight that could be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapterfile import write
from fusing import Files
from named import named_source
from pico import PICOS, pico
from published import shapes

from lcmmerge.archs import kohya_name, lora_targets
from lcmmerge.inspection import AdapterFacts, CheckpointFacts, Unknown, inspect
from lcmmerge.tensors import open_source


@pytest.mark.parametrize("name", PICOS)
def test_a_checkpoint(name: str, files: Callable[[str], Files]) -> None:
    facts = inspect(open_source(files(name).base())).content
    assert isinstance(facts, CheckpointFacts)
    state = pico(name).state()
    assert facts.model.arch == pico(name).arch
    assert facts.model.purpose == ("inpainting" if name == "sd1-inpainting" else "base")
    for part in facts.parts:
        mine = [tensor for parameter, tensor in state.items() if parameter.startswith(f"{part.name}.")]
        assert part.parameters == sum(tensor.numel() for tensor in mine)
        assert part.nbytes == 2 * part.parameters
        assert dict(part.dtypes) == {"F16": part.tensors}
    assert facts.missing == ()


def test_leftovers_are_parts_of_their_own(tmp_path: Path) -> None:
    path = pico("sd1").single_file(tmp_path / "extras.safetensors", extras=True)
    facts = inspect(open_source(path)).content
    assert isinstance(facts, CheckpointFacts)
    parts = {part.name: part for part in facts.parts}
    assert parts["EMA"].tensors == parts["unet"].tensors + 1  # and the decay
    assert parts["other"].tensors == 2  # alphas_cumprod, position_ids


@pytest.mark.parametrize(
    ("name", "modules", "millions"), [("sd1", 278, 67.25), ("sdxl", 788, 196.75), ("ssd1b", 423, 105)]
)
def test_the_papers_table_for_real_checkpoints(name: str, modules: int, millions: float) -> None:
    """LCM-LoRA, arXiv 2311.05556: trainable parameters at rank 64."""
    facts = inspect(named_source(shapes(name), "diffusers")).content
    assert isinstance(facts, CheckpointFacts)
    assert facts.lora_modules == modules
    assert facts.lora_parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_an_official_lcm_lora_by_its_shapes() -> None:
    names = {}
    for module, (out, *rest) in lora_targets(shapes("sdxl")).items():
        key = kohya_name(module, pico("sdxl").arch)
        names[f"{key}.lora_down.weight"] = (64, *rest)
        names[f"{key}.lora_up.weight"] = (out, 64, *(1 for _ in rest[1:]))
    facts = inspect(named_source(names)).content
    assert isinstance(facts, AdapterFacts)
    assert facts.architecture == "Stable Diffusion XL"
    assert facts.file.grammars == ("kohya",)
    (part,) = facts.parts
    assert (part.component, part.algorithm, part.modules) == ("unet", "lora", 788)
    assert part.ranks == {64: 788}
    assert facts.parameters == part.parameters == pytest.approx(196.75e6, abs=5e3)


def test_an_adapters_parts(files: Callable[[str], Files]) -> None:
    facts = inspect(open_source(files("sdxl").style)).content
    assert isinstance(facts, AdapterFacts)
    assert [part.component for part in facts.parts] == ["text_encoder", "text_encoder_2", "unet"]
    assert all(part.ranks.keys() == {4} and part.alphas.keys() == {2.0} for part in facts.parts)
    stored = open_source(files("sdxl").style)
    assert facts.parameters == sum(info.numel for info in stored if not info.name.endswith("alpha"))


def test_a_tensor_that_serves_weight_and_bias_counts_once(tmp_path: Path) -> None:
    key = "base_model.model.down_blocks.0.attentions.0.proj_in"
    tensors = {
        f"{key}.lora_A.weight": torch.ones(4, 8),
        f"{key}.lora_B.weight": torch.ones(8, 4),
        f"{key}.lora_B.bias": torch.ones(8),
    }
    facts = inspect(write(tmp_path / "peft.safetensors", tensors)).content
    assert isinstance(facts, AdapterFacts)
    assert facts.parameters == 32 + 32 + 8


def test_what_is_neither() -> None:
    content = inspect(named_source({"decoder.conv_in.weight": (4, 4, 3, 3)})).content
    assert content == Unknown("this is a VAE alone")


def test_a_recipe_that_is_no_json_is_no_recipe() -> None:
    source = named_source({"a": (1,)})
    assert inspect(replace(source, metadata={"sd_merge_recipe": "{"})).recipe is None
    assert inspect(replace(source, metadata={"sd_merge_recipe": "[1]"})).recipe is None
    assert inspect(replace(source, metadata={"sd_merge_recipe": '{"type": "webui"}'})).recipe == {"type": "webui"}
