"""Graphs under the names of NVIDIA's demo: the same values, and the commands that bring them to it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from exporting import exported, graphs, merge, write
from fusing import Files
from onnxfile import configs, make
from onnxfile import export as make_graphs

from lcmmerge.errors import IncompatibleError, LcmMergeError
from lcmmerge.export.check import check
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.names import check_names, rename, renamed
from lcmmerge.graphs.components import PipelinePart, components_of
from lcmmerge.graphs.link import check_link
from lcmmerge.output import Output

# What the demo's own model classes call them: graph → inputs, outputs.
SD = {
    "clip": (["input_ids"], ["text_embeddings"]),
    "unet": (["sample", "timestep", "encoder_hidden_states"], ["latent"]),
    "vae": (["latent"], ["images"]),
}


@pytest.fixture(scope="module")
def export(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported(tmp_path_factory, files("sd1"))  # whose graphs serve this one, too
    folder = tmp_path_factory.mktemp("named") / "export"
    write(merge(files("sd1"), folder), graphs(tmp_path_factory), to="tensorrt", nvidia=True)
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def ports(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def test_ports_are_the_demo_s(export: Path) -> None:
    named = read_manifest(export).named
    assert {name: ports(export / item["path"]) for name, item in named.items()} == SD


def test_values_are_the_other_graph_s(export: Path) -> None:
    latents = torch.randn(1, 4, 7, 9, generator=torch.Generator().manual_seed(0)).half().numpy()
    (expected,) = session(export / "vae_decoder/model.onnx").run(["sample"], {"latent_sample": latents})
    (found,) = session(export / "vae_decoder/model.nvidia.onnx").run(None, {"latent": latents})
    assert (found == expected).all()


def test_the_export_is_checked_with_them(export: Path) -> None:
    report = check(export, Output(quiet=True))
    assert {"text_encoder/model.nvidia.onnx", "unet/model.nvidia.onnx"} < set(report.graphs)
    assert report.broken == ()
    assert "unet/model.nvidia.onnx" in read_manifest(export).graphs  # whose links a new λ leaves as they are


@pytest.mark.e2e
def test_the_commands_bring_them_to_the_demo(export: Path, tmp_path: Path) -> None:
    text = (export / "tensorrt/README.md").read_text()
    (commands,) = re.findall(r"```sh\n(demo=onnx.*?)```", text, re.DOTALL)
    script = commands.replace("demo=onnx", f"demo={tmp_path}/onnx")
    subprocess.run(["bash", "-euc", script], check=True, cwd=export)
    for name in SD:
        graph = tmp_path / "onnx" / f"{name}.opt" / "model.onnx"
        check_link(graph)
        assert session(graph).get_inputs()[0].name == SD[name][0][0]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> list[PipelinePart]:
    """SDXL's, without its VAE."""
    found = []
    for part in ("text_encoder", "text_encoder_2", "sdxl"):
        found += components_of(configs(part, make(part), tmp_path_factory.mktemp(part)))
    return found


def test_sdxl_s(xl: list[PipelinePart], tmp_path_factory: pytest.TempPathFactory) -> None:
    clip, second, unet = renamed(xl)
    assert [item.name for item in (clip, second, unet)] == ["clip", "clip2", "unetxl"]
    assert clip.outputs == {"last_hidden_state": "text_embeddings", "hidden_states.1": "hidden_states"}
    folder = tmp_path_factory.mktemp("clip2")
    made = make_graphs("text_encoder_2", "text_encoder_2", "fp16", folder, graphs(tmp_path_factory))["plain"]
    path = folder / "model.nvidia.onnx"
    path.write_bytes(rename(made.path.read_bytes(), second))
    onnx.checker.check_model(path, full_check=True)
    assert ports(path) == (["input_ids"], ["text_embeddings", "hidden_states"])
    ids = {"input_ids": made.inputs(1, 8, 8)["input_ids"].numpy()}
    expected = session(made.path).run(["text_embeds", "hidden_states.1"], ids)  # of two layers
    for found, wanted in zip(session(path).run(None, ids), expected, strict=True):
        assert (found == wanted).all()


def test_what_the_demo_has_no_place_for(xl: list[PipelinePart], tmp_path: Path) -> None:
    check_names("tensorrt", xl)
    with pytest.raises(LcmMergeError, match="are for TensorRT"):
        check_names("onnx", xl)
    with pytest.raises(IncompatibleError, match="no full LCM"):
        check_names("tensorrt", components_of(configs("sdxl-lcm", make("sdxl-lcm"), tmp_path)))
