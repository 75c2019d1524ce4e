"""The tables of every family of diffusion transformers. Oracles: diffusers' own classes and single-file converters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers
from families import (
    CASES,
    converted,
    each_family,
    families,
    folder,
    narrow,
    published,
    single_file,
    sized,
    state_of,
    stored,
)
from named import named_source

from lcmmerge.archs import guess_architecture, identify
from lcmmerge.errors import UnknownArchitectureError
from lcmmerge.tensors import open_source

FAMILIES = each_family()
CONVERTED = [each for each in FAMILIES if CASES[getattr(each, "values", [each])[0]].converter is not None]
BEGINS = ("", "model.diffusion_model.", "diffusion_model.", "net.", "model.")


def test_each_family_has_a_case() -> None:
    assert set(families()) == set(CASES)


@pytest.mark.parametrize("name", FAMILIES)
def test_canonical_names_are_those_of_diffusers_class(name: str) -> None:
    """At the published depth."""
    real = {f"transformer.{key}" for key in published(name).state_dict()}
    arch = families()[name]
    mapped = {key for key in arch.keymap("diffusers").slots if key.startswith("transformer.")}
    assert real <= mapped
    assert not (mapped - real) & arch.required


@pytest.mark.parametrize("name", CONVERTED)
def test_diffusers_converter_gives_the_weights_back(name: str) -> None:
    """Of our table, backwards."""
    weights = narrow(name)
    single = stored(name, {f"transformer.{key}": tensor for key, tensor in weights.items()})
    single |= {key: torch.ones(2) for key in CASES[name].beside}
    found = converted(name, single)
    assert found.keys() == weights.keys()
    assert not [key for key, tensor in weights.items() if not torch.equal(found[key], tensor)]


def test_ltx_23s_prompt_embeddings() -> None:
    """Oracle: diffusers' converter of LoRAs, which knows them; that of single files leaves their names."""
    weights = state_of("ltx2")
    single = {f"diffusion_model.{key}": tensor for key, tensor in stored("ltx2", weights).items()}
    assert "diffusion_model.audio_prompt_adaln_single.linear.weight" in single
    found = _convert_non_diffusers_ltx2_lora_to_diffusers(single)
    assert found.keys() == weights.keys()
    assert not [key for key, tensor in weights.items() if not torch.equal(found[key], tensor)]


def test_ideograms_published_files_have_458_tensors() -> None:
    """As programs that read them count, other than diffusers."""
    arch = families()["ideogram4"]
    assert len([key for key in arch.keymap("single-file").stored if key.startswith(arch.denoiser.stored)]) == 458


@pytest.mark.parametrize("begin", BEGINS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_is_recognised(name: str, begin: str, tmp_path: Path) -> None:
    weights = state_of(name)
    model = identify(open_source(single_file(tmp_path / "base.safetensors", name, weights, begin)))
    arch = families()[name]
    assert (model.arch.name, model.layout, model.components) == (arch.name, "component", ("transformer",))
    assert model.shapes == {key: tuple(tensor.shape) for key, tensor in weights.items()}
    assert set(model.leftovers) == {begin + key for key in CASES[name].beside} and not model.missing
    assert model.arch.denoiser == sized(arch, weights).denoiser


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_recognised(name: str, tmp_path: Path) -> None:
    weights = state_of(name)
    path = folder(tmp_path / "base", name, weights)
    for source in (open_source(path), open_source(path / "transformer")):
        model = identify(source)
        assert (model.arch.name, model.components) == (families()[name].name, ("transformer",))
        assert model.shapes == {key: tuple(tensor.shape) for key, tensor in weights.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_one_without_a_block_list_is_not_whole(name: str) -> None:
    arch = families()[name]
    for item in arch.denoiser.lists:  # type: ignore[attr-defined]
        if all(row.optional for row in item.table):
            continue
        shapes = {key: tuple(tensor.shape) for key, tensor in state_of(name).items()}
        left = {key: shape for key, shape in shapes.items() if not key.startswith(f"transformer.{item.name}.")}
        with pytest.raises(UnknownArchitectureError, match=None if CASES[name].family else "lacks"):
            identify(named_source(left))


@pytest.mark.parametrize("space", ["stored", "canonical"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_tells_its_family(name: str, space: str) -> None:
    """By names and shapes: of every matrix, or of what is called an attention alone, which several families share."""
    weights = {key.removeprefix("transformer."): tensor for key, tensor in state_of(name).items()}
    state = stored(name, state_of(name)) if space == "stored" else weights
    shapes = {key.removesuffix(".weight"): tuple(t.shape) for key, t in state.items() if t.dim() > 1}
    title = families()[name].title
    assert guess_architecture(shapes) == title
    attentions = {key: shape for key, shape in shapes.items() if "att" in key and "norm" not in key}
    assert title in (guess_architecture(attentions) or "").split(" or ")
    if name in ("z_image", "lumina2"):  # whose names are the same, and not the rows
        assert guess_architecture(attentions) == title
