"""A whole export: the files that diffusers and ONNX Runtime read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exporting import SIZES, STRENGTHS, exported, graphs, merge, write
from fusing import Files, canonical, fuse, raw
from merging import merge_of
from recipefile import contents
from safetensors.torch import load_file
from sampling import by_diffusers, one
from transformers import CLIPTokenizer

from lcmmerge.archs import identify
from lcmmerge.errors import IncompatibleError, NotFoundError, OutputError, ShapeMismatchError
from lcmmerge.export import parity
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.request import ExportRequest, prepare, vae_dtype
from lcmmerge.merge.spec import Merge
from lcmmerge.tensors import open_source

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
FAST = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


@pytest.fixture
def folder(sd1: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, sd1)


@pytest.fixture
def cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every graph in it."""
    return graphs(tmp_path_factory)


def model_alone(reference: Path, target: Path, **fields: str) -> Merge:
    return merge_of(str(reference), target, strengths=(1.0, 0.0), **fields)


def test_diffusers_draws_with_it_as_with_the_baked_model(sd1: Files, folder: Path, tmp_path: Path) -> None:
    baked = tmp_path / "baked"
    lcm = {"config_from": sd1.folder(), "accelerator": "lcm", "layout": "diffusers"}
    fuse(sd1.base(), baked, sd1.style, sd1.lcm, STRENGTHS, **lcm)
    found, expected = canonical(folder), canonical(baked)
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert all(raw(found[name]).equal(raw(tensor)) for name, tensor in expected.items())
    assert np.array_equal(by_diffusers(folder, one(), **FAST), by_diffusers(baked, one(), **FAST))


def test_the_halves_of_the_vae_are_the_whole(folder: Path) -> None:
    whole, halves = load_file(folder / "vae/diffusion_pytorch_model.safetensors"), {}
    for half in ("vae_decoder", "vae_encoder"):
        halves |= load_file(folder / half / "diffusion_pytorch_model.safetensors")
    assert halves.keys() == whole.keys()
    assert all(raw(halves[name]).equal(raw(tensor)) for name, tensor in whole.items())


def test_tokenizers_read_either_form_alone(sd1: Files, folder: Path, tmp_path: Path) -> None:
    expected = CLIPTokenizer.from_pretrained(sd1.folder() / "tokenizer")
    forms = {"old": ("vocab.json", "merges.txt", "special_tokens_map.json"), "new": ("tokenizer.json",)}
    for form, names in forms.items():
        (tmp_path / form).mkdir()
        for name in (*names, "tokenizer_config.json"):
            (tmp_path / form / name).write_bytes((folder / "tokenizer" / name).read_bytes())
        found = CLIPTokenizer.from_pretrained(tmp_path / form)
        for text in ("the thing", "In a hat!", ""):
            padded = {"padding": "max_length", "truncation": True}
            assert found(text, **padded).input_ids == expected(text, **padded).input_ids
    assert {path.name for path in (folder / "tokenizer").iterdir()} > {*forms["old"], *forms["new"]}


def test_the_same_export_is_the_same_bytes_and_tells_no_path(
    sd1: Files, folder: Path, cache: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    manifest = write(merge(sd1, again), cache, to="tensorrt", statics=((128, 64),)).manifest
    found, there = contents(again), contents(folder)
    assert {name for name in there if found[name] != there[name]} == {"lcmmerge.json"}  # which has no parity
    assert manifest == replace(read_manifest(folder), parity={}, image_parity={})
    for name, content in found.items():
        assert not any(str(path).encode() in content for path in (tmp_path, folder, sd1.root)), name


def test_a_baked_model_is_exported_as_it_is(sd1: Files, folder: Path, cache: Path, tmp_path: Path) -> None:
    """Its scheduler, and its merge, are those that it recorded."""
    baked = tmp_path / "baked.safetensors"
    fuse(sd1.base(), baked, sd1.style, sd1.lcm, STRENGTHS, accelerator="lcm")
    out = tmp_path / "out"
    manifest = write(model_alone(baked, out, config_from=str(sd1.folder())), cache).manifest
    live = contents(folder)
    for name, content in contents(out).items():
        assert name == "lcmmerge.json" or content == live[name], name
    assert manifest.sampling["scheduler"] == "LCMScheduler"
    assert [term["lambda"] for term in manifest.recipe["terms"]] == list(STRENGTHS)
    assert manifest.model["name"] == "baked.safetensors"


def test_the_vae_of_sdxl_stays_in_float32_beside_float16(files: Callable[[str], Files], tmp_path: Path) -> None:
    xl, sd1 = (identify(open_source(files(name).folder())) for name in ("sdxl", "sd1"))
    configs = files("sdxl").folder()
    assert [vae_dtype(xl, configs, dtype) for dtype in ("fp16", "bf16", "fp32")] == ["fp32", "bf16", "fp32"]
    assert vae_dtype(sd1, files("sd1").folder(), "fp16") == "fp16"
    mended = tmp_path / "mended"
    (mended / "vae").mkdir(parents=True)
    text = (configs / "vae/config.json").read_text()
    (mended / "vae/config.json").write_text(text.replace('"force_upcast": true', '"force_upcast": false'))
    assert vae_dtype(xl, mended, "fp16") == "fp16"


def test_parity_is_recorded_at_each_size(folder: Path) -> None:
    """ONNX Runtime ran every graph for it."""
    assert len(parity.SIZES) >= 6
    assert any(height % 2 and width % 2 for height, width in SIZES)
    found = read_manifest(folder).parity
    assert found.keys() == set(COMPONENTS)
    for component in COMPONENTS:
        assert found[component]["plain"]["sizes"] == [list(size) for size in SIZES]
        assert 0 < found[component]["plain"]["relative"] < 2e-3, component
    image = read_manifest(folder).image_parity
    assert (image["size"], image["steps"]) == ([64, 64], 4)
    assert image["mean_levels"] < 1


def test_what_is_there_is_not_replaced_unasked(sd1: Files, folder: Path, cache: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    for force in (False, True):  # a folder that is no pipeline never is
        with pytest.raises(OutputError, match="is a folder, and would be lost"):
            write(merge(sd1, target), cache, force=force)
    assert contents(tmp_path) == {"mine/notes.txt": b"mine"}
    (target / "notes.txt").unlink()
    with pytest.raises(OutputError, match="exists already"):
        write(merge(sd1, target), cache)
    write(merge(sd1, target), cache, force=True)
    assert (target / "lcmmerge.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_cannot_be_exported(files: Callable[[str], Files], sd1: Files, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(request: Merge, **fields: str) -> None:
        prepare(ExportRequest(request, **fields))

    with pytest.raises(IncompatibleError, match="draws from an image"):
        refused(model_alone(files("sd1-inpainting").folder(), out))
    with pytest.raises(IncompatibleError, match="has no vae, text_encoder"):
        refused(model_alone(sd1.folder() / "unet/diffusion_pytorch_model.safetensors", out))
    with pytest.raises(ShapeMismatchError, match="another U-Net"):
        refused(model_alone(sd1.base(), out, config_from=str(files("sd2").folder())))
    with pytest.raises(NotFoundError, match="'coreml': no such target"):
        refused(model_alone(sd1.folder(), out), to="coreml")
    assert not list(tmp_path.iterdir())


def test_weights_that_no_config_describes(sd1: Files, tmp_path: Path) -> None:
    """A VAE's width is in no place where a U-Net's config could be compared with it."""
    configs = tmp_path / "configs"
    for name, content in contents(sd1.folder()).items():
        if not name.endswith(".safetensors"):
            (configs / name).parent.mkdir(parents=True, exist_ok=True)
            text = content.replace(b'"latent_channels": 4', b'"latent_channels": 8')
            (configs / name).write_bytes(text)
    with pytest.raises(ShapeMismatchError, match="parameters of vae_decoder are not as it describes them"):
        prepare(ExportRequest(model_alone(sd1.base(), tmp_path / "out", config_from=str(configs))))
