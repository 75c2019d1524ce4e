"""An export of a stranger's can make a command fail in one line, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from fusing import Files
from recipefile import contents

from lcmmerge.errors import FormatError, LcmMergeError, VerificationError
from lcmmerge.export.check import check
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.relambda import relambda
from lcmmerge.export.runtime import _engine_cache, _options, open_session
from lcmmerge.export.targets.tensorrt import TARGET
from lcmmerge.export.tokenizers import write_tokenizer
from lcmmerge.graphs.components import components_of
from lcmmerge.output import Output

QUIET = Output(quiet=True)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def strange(folder: Path, tmp_path: Path) -> Path:
    """A copy of an export for TensorRT, beside a folder of the user's."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "settings.json").write_text("mine")
    return shutil.copytree(folder, tmp_path / "export")


def changed(folder: Path, change: Change) -> None:
    manifest = folder / "lcmmerge.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))


def unet(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["components"]["unet"]
    return found


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


OUT = "../victim/settings"
FORGED: dict[str, Change] = {
    "graph outside": lambda content: unet(content)["graphs"]["plain"].update(path=OUT),
    "graph a word of a shell": lambda content: unet(content)["graphs"]["plain"].update(path="a $(touch x)"),
    "nested deep": lambda content: content.update(recipe=nested(700)),
    "graph absolute": lambda content: unet(content)["graphs"]["plain"].update(path="/etc/passwd"),
    "weights outside": lambda content: unet(content).update(weights=OUT),
    "no plain graph": lambda content: unet(content)["graphs"].pop("plain"),
    "no components": lambda content: content.update(components={}),
    "component outside": lambda content: content["components"].update({OUT: unet(content)}),
    "components a list": lambda content: content.update(components=[]),
    "target outside": lambda content: content.update(target="../../evil"),
    "profile outside": lambda content: content["profiles"].update({OUT: content["profiles"]["dynamic"]}),
    "no profiles": lambda content: content.update(profiles={}),
    "profile of nothing": lambda content: content["profiles"]["dynamic"]["shapes"].update(evil={}),
    "profile without a component": lambda content: content["profiles"]["dynamic"]["shapes"].pop("unet"),
    "shape of text": lambda content: content["profiles"]["dynamic"]["shapes"]["unet"].update(sample=[["x"]] * 3),
    "file outside": lambda content: content["files"].update({OUT: {"bytes": 1, "sha256": "0"}}),
    "weights unknown": lambda content: content["files"].pop(unet(content)["weights"]),
    "dtype": lambda content: unet(content).update(dtype="evil"),
    "scheduler": lambda content: content["sampling"].update(scheduler="os.system"),
    "steps": lambda content: content["sampling"].update(steps=10**9),
    "guidance": lambda content: content["sampling"].update(guidance=float("nan")),
    "reference to a path": lambda content: content["references"].update(base="/etc/passwd"),
    "recipe a list": lambda content: content.update(recipe=[]),
    "unfinished": lambda content: content.update(unfinished="yes"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_manifest_that_is_none(name: str, strange: Path, tmp_path: Path) -> None:
    changed(strange, FORGED[name])
    before = contents(tmp_path)
    for act in (
        lambda: read_manifest(strange),
        lambda: check(strange, QUIET),
        lambda: relambda(strange, {"lcm": 0.5}, [str(tmp_path)], QUIET),
    ):
        with pytest.raises(FormatError, match="is not a manifest of this version, or damaged"):
            act()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["recipe"]["terms"][0].update({"lambda": "x"}),
        lambda content: content["recipe"].pop("base"),
        lambda content: [content["components"].pop(name) for name in ("text_encoder",)],
        lambda content: content.update(target="nothing"),
    ],
)
def test_what_only_another_lambda_needs(change: Change, strange: Path, tmp_path: Path) -> None:
    changed(strange, change)
    before = contents(tmp_path)
    with pytest.raises(LcmMergeError):
        relambda(strange, {"lcm": 0.5}, [str(tmp_path)], QUIET)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt/ort", "tensorrt/ort/dynamic.json", "tensorrt/README.md"])
def test_a_targets_files_are_written_through_no_link(name: str, strange: Path, tmp_path: Path) -> None:
    linked, victim = strange / name, tmp_path / "victim"
    if linked.is_dir():
        shutil.rmtree(linked)
        linked.symlink_to(victim)
    else:
        linked.unlink()
        linked.symlink_to(victim / "settings.json")
    (victim / "engines").mkdir()
    (victim / "engines" / "mine").write_text("mine")
    with pytest.raises(FormatError, match="symbolic link"):
        TARGET.write(strange, read_manifest(strange))
    assert contents(victim) == {"settings.json": b"mine", "engines/mine": b"mine"}


def test_only_folders_of_engines_are_removed(strange: Path, tmp_path: Path) -> None:
    place = strange / "tensorrt"
    for name in ("cache-0123456789ab", "cache-notes"):
        (place / name).mkdir()
    (place / "cache-ba9876543210").symlink_to(tmp_path / "victim")
    (place / "cache-aaaaaaaaaaaa").write_text("mine")
    assert TARGET.write(strange, read_manifest(strange)) == ("tensorrt/cache-0123456789ab",)
    assert {path.name for path in place.glob("cache-*")} == {"cache-notes", "cache-ba9876543210", "cache-aaaaaaaaaaaa"}
    assert contents(tmp_path / "victim") == {"settings.json": b"mine"}


@pytest.mark.parametrize("name", ["unet", "unet/diffusion_pytorch_model.safetensors", "tensorrt", "notes"])
def test_another_lambda_is_written_through_no_link(name: str, strange: Path, tmp_path: Path) -> None:
    if (strange / name).exists():
        (strange / name).rename(tmp_path / "victim" / "there")
    (strange / name).symlink_to(tmp_path / "victim" / "there")
    before = contents(tmp_path / "victim")
    with pytest.raises(FormatError, match="is a symbolic link"):
        relambda(strange, {"lcm": 0.5}, [str(tmp_path)], QUIET)
    assert contents(tmp_path / "victim") == before


def test_weights_that_the_user_put_there_are_not_replaced(files: Callable[[str], Files], strange: Path) -> None:
    sd1 = files("sd1")
    weights = strange / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    before = contents(strange)
    with pytest.raises(VerificationError, match="is not the file that was exported"):
        relambda(strange, {"lcm": 0.5}, [str(sd1.base()), str(sd1.style), str(sd1.lcm)], QUIET)
    assert contents(strange) == before


def test_engines_are_the_user_s_own(strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came with the export would be run unasked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = [strange / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae_decoder")]
    first, other = (Path(_engine_cache(strange, "unet", path)["trt_engine_cache_path"]) for path in weights)
    assert other.is_relative_to(tmp_path / "lcmmerge")
    assert [path.name for path in other.parent.iterdir()] == [other.name] != [first.name]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert _engine_cache(strange, "unet", weights[0])["trt_engine_cache_enable"] == "0"


@pytest.mark.parametrize("provider", ["cpu", "torch"])
def test_operators_of_the_runtime_s_own_are_refused(provider: str, strange: Path) -> None:
    """EPContext loads an engine from a file."""
    graph = strange / "vae_decoder" / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(onnx.helper.make_node("EPContext", [], ["z"], "hidden", domain="com.microsoft"))
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match=r"com\.microsoft::EPContext 'hidden' is none of ONNX's own operators"):
        open_session(graph, provider)


@pytest.mark.parametrize("said", [5, "UNet2DConditionModel", [], ["diffusers"], ["diffusers", 5], {}])
def test_an_index_that_says_no_class(said: object, strange: Path) -> None:
    index = strange / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": said}))
    with pytest.raises(FormatError, match="does not say what its unet is"):
        components_of(strange)


@pytest.mark.parametrize(
    "options",
    [
        {"trt_extra_plugin_lib_paths": "/nowhere/evil.so"},
        {"trt_engine_cache_path": "../../home/me"},
        {"trt_engine_cache_path": "tensorrt/../../x"},
        {"trt_timing_cache_path": "/etc/x"},
        {"trt_engine_cache_prefix": "../x"},
        {"trt_profile_min_shapes": "sample:1x4;import"},
        {"trt_cuda_graph_enable": "2"},
        {"device_id": 0},
        [],
    ],
)
def test_options_that_no_export_has(options: object, strange: Path) -> None:
    assert set(_options(strange, "unet", "tensorrt")) >= {"trt_engine_cache_path", "trt_cuda_graph_enable"}
    file = strange / "tensorrt" / "ort" / "dynamic.json"
    file.write_text(json.dumps({"unet": options}))
    with pytest.raises(FormatError):
        _options(strange, "unet", "tensorrt")
    file.write_text("[")
    with pytest.raises(FormatError):
        _options(strange, "unet", "tensorrt")


def test_a_tokenizer_that_leads_elsewhere_is_not_copied(strange: Path, tmp_path: Path) -> None:
    source = strange / "tokenizer"
    (source / "notes.txt").symlink_to(tmp_path / "victim" / "settings.json")
    with pytest.raises(FormatError, match="symbolic link"):
        write_tokenizer(source, tmp_path / "copy", tmp_path / "cache")
    assert not (tmp_path / "copy").exists()
