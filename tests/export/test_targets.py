"""Targets: profiles that cover what a graph takes, and TensorRT's files that say so in each tool's words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lcmmerge.errors import LcmMergeError, NotFoundError
from lcmmerge.export.engines import build_engines, check_engines
from lcmmerge.export.manifest import ExportManifest
from lcmmerge.export.targets import named, targets
from lcmmerge.graphs.profiles import DYNAMIC, Facts, profiles
from lcmmerge.output import Output

XL = Facts((1024, 1024), pixels=8, tokens=77, passes=1)


def test_targets_are_the_files_of_their_folder() -> None:
    assert set(targets()) >= {"onnx", "tensorrt"}
    with pytest.raises(NotFoundError) as error:
        named("coreml")
    assert error.value.hint == f"the targets are {', '.join(targets())}"


@pytest.mark.parametrize("name", targets())
def test_says_what_it_is_and_what_its_runtimes_take(name: str) -> None:
    assert named(name).title
    assert named(name).fused <= {"fp32", "fp16", "bf16"}


def test_profiles_are_around_the_native_size() -> None:
    dynamic, native, portrait = profiles(XL, [(832, 1216), (1024, 1024)])
    assert (dynamic.name, dynamic.width, dynamic.images) == (DYNAMIC, (512, 1024, 1536), (1, 1, 4))
    assert not dynamic.static
    assert (native.name, native.static) == ("1024x1024", True)
    assert (portrait.width, portrait.height) == ((832,) * 3, (1216,) * 3)


def test_every_size_is_a_multiple_of_the_latent_s() -> None:
    dynamic, *_ = profiles(Facts((520, 8), pixels=8, tokens=77, passes=1))
    assert all(side % 8 == 0 and side > 0 for side in (*dynamic.width, *dynamic.height))


def test_profiles_cover_every_axis_that_varies(manifest: ExportManifest) -> None:
    assert list(manifest.profiles) == [DYNAMIC, "64x64", "128x64"]
    for profile in manifest.profiles.values():
        for component, said in manifest.components.items():
            varying = {name: dims for name, dims in said["inputs"].items() if any(isinstance(dim, str) for dim in dims)}
            assert profile["shapes"][component].keys() == varying.keys()
            for name, shapes in profile["shapes"][component].items():
                least, usual, most = map(tuple, shapes)
                assert all(low <= mid <= high for low, mid, high in zip(least, usual, most, strict=True))
                assert (least == most) == profile["static"]
                fixed = [(dim, size) for dim, size in zip(varying[name], usual, strict=True) if isinstance(dim, int)]
                assert all(dim == size for dim, size in fixed)


def test_two_passes_under_guidance(manifest: ExportManifest) -> None:
    """An LCM needs one; a dynamic engine takes both, of four images."""
    assert manifest.profiles["64x64"]["shapes"]["unet"]["sample"] == [[1, 4, 8, 8]] * 3
    assert [shape[0] for shape in manifest.profiles[DYNAMIC]["shapes"]["unet"]["sample"]] == [1, 1, 8]
    assert [shape[0] for shape in manifest.profiles[DYNAMIC]["shapes"]["vae_decoder"]["latent_sample"]] == [1, 1, 4]


def test_onnx_runtime_s_options(folder: Path, manifest: ExportManifest) -> None:
    options = json.loads((folder / "tensorrt/ort/128x64.json").read_text())
    assert options.keys() == manifest.components.keys()
    unet = options["unet"]
    assert unet["trt_profile_min_shapes"] == unet["trt_profile_max_shapes"]
    assert unet["trt_profile_opt_shapes"] == "sample:1x4x8x16,encoder_hidden_states:1x77x16"
    assert (unet["trt_cuda_graph_enable"], unet["trt_engine_cache_enable"]) == ("1", "1")
    dynamic = json.loads((folder / "tensorrt/ort/dynamic.json").read_text())
    assert dynamic["unet"]["trt_cuda_graph_enable"] == "0"
    places = {item["trt_engine_cache_path"] for item in dynamic.values()}
    assert len(places) == len(dynamic)  # by their weights
    assert not any("fp16" in key for key in unet)  # the graph's own types hold


def test_trtexec_and_polygraphy(folder: Path) -> None:
    shapes = "sample:8x4x12x12,encoder_hidden_states:8x77x16"
    assert (folder / "tensorrt/trtexec/unet-dynamic.txt").read_text().splitlines() == [
        "--onnx=unet/model.onnx",
        "--stronglyTyped",
        "--minShapes=sample:1x4x4x4,encoder_hidden_states:1x77x16",
        "--optShapes=sample:1x4x8x8,encoder_hidden_states:1x77x16",
        f"--maxShapes={shapes}",
        "--saveEngine=tensorrt/engines/unet-dynamic.plan",
    ]
    words = (folder / "tensorrt/polygraphy/unet-dynamic.txt").read_text().split()
    assert words[:4] == ["unet/model.onnx", "--convert-to", "trt", "--strongly-typed"]
    at = words.index("--trt-max-shapes")
    assert words[at + 1 : at + 3] == ["sample:[8,4,12,12]", "encoder_hidden_states:[8,77,16]"]
    assert words[-2:] == ["-o", "tensorrt/engines/unet-dynamic.plan"]


def test_the_readme_s_commands_name_files_that_are_there(folder: Path) -> None:
    lines = (folder / "tensorrt/README.md").read_text().splitlines()
    commands = [line for line in lines if "$(cat " in line]
    assert len(commands) == 2 * 3 * 4  # tools, profiles, components
    for command in commands:
        assert (folder / command.partition("$(cat ")[2].rstrip(")")).is_file()
    assert "| 128x64 | 1 | 128 | 64 |" in lines


def test_fused_graphs_come_first_where_there_are_any(folder: Path, manifest: ExportManifest, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "export")
    manifest.components["unet"]["graphs"]["fused"] = {"path": "unet/model.fused.onnx", "opset": 23}
    named("tensorrt").write(copy, manifest)
    assert (copy / "tensorrt/trtexec/unet-dynamic.txt").read_text().startswith("--onnx=unet/model.fused.onnx\n")
    assert (copy / "tensorrt/trtexec/vae_decoder-dynamic.txt").read_text().startswith("--onnx=vae_decoder/model.onnx\n")


def test_engines_that_cannot_be_built_are_refused_first() -> None:
    with pytest.raises(LcmMergeError, match="an export to onnx has no engines"):
        check_engines(["dynamic"], ["dynamic"], "onnx")
    with pytest.raises(NotFoundError, match="'512': no such profile"):
        check_engines(["512"], ["dynamic", "512x512"], "tensorrt")


def test_an_engine_is_built_on_the_cpu(folder: Path, manifest: ExportManifest, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    copy = shutil.copytree(folder, tmp_path / "export")
    shapes = {"vae_encoder": manifest.profiles["64x64"]["shapes"]["vae_encoder"]}
    profiles = {"64x64": {**manifest.profiles["64x64"], "shapes": shapes}}
    build_engines(copy, replace(manifest, profiles=profiles), ["64x64"], Output(quiet=True))
    (built,) = (copy / "tensorrt/engines").iterdir()
    assert built.name == "vae_encoder-64x64.plan"
    assert built.stat().st_size > (copy / "vae_encoder/diffusion_pytorch_model.safetensors").stat().st_size
