"""A whole pipeline as one graph, by ONNX Runtime, beside diffusers' own loop over the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from exporting import graphs, shared, write
from filelock import FileLock
from fusing import Files
from merging import merge_of
from running import linked

from lcmmerge.draw.presets import Preset
from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError
from lcmmerge.export.check import check
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.relambda import relambda
from lcmmerge.export.request import ExportRequest, prepare
from lcmmerge.export.whole import plan_loop, write_whole
from lcmmerge.graphs.components import components_of
from lcmmerge.graphs.link import check_link
from lcmmerge.graphs.schedule import steps_of
from lcmmerge.output import Output

pytestmark = pytest.mark.e2e

QUIET = Output(quiet=True)
STEPS, PROMPTS = 2, ["the thing", "a fox"]


@pytest.fixture(scope="session")
def sd1(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared(tmp_path_factory) / "whole-sd1"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            request = merge_of(str(files("sd1").folder("fp32")), folder, strengths=(1.0, 0.0))
            write(request, graphs(tmp_path_factory), dtype="fp32", fused=True, whole=STEPS, accelerator="lcm")
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def tokens(pipeline: DiffusionPipeline) -> dict[str, np.ndarray]:
    names = {"tokenizer": "input_ids", "tokenizer_2": "input_ids_2"}
    return {
        given: getattr(pipeline, name)(PROMPTS, padding="max_length", max_length=77, return_tensors="np").input_ids
        for name, given in names.items()
        if hasattr(pipeline, name)
    }


def drawn(
    folder: Path, height: int, width: int, guidance: float, pipeline: DiffusionPipeline
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [2, height, width, 3] by the graph, and by diffusers."""
    pipeline.set_progress_bar_config(disable=True)
    shape = (2, 4, height // 8, width // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    images = pipeline(
        PROMPTS, latents=latents, generator=torch.Generator().manual_seed(2), num_inference_steps=STEPS,
        guidance_scale=guidance, height=height, width=width,
    ).images  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    noise = torch.stack([latents, *(torch.randn(shape, generator=generator) for _ in range(STEPS - 1))])
    return run(folder, tokens(pipeline), noise), np.stack([np.asarray(image) for image in images])


def run(folder: Path, ids: dict[str, np.ndarray], noise: torch.Tensor, name: str = "pipeline.onnx") -> np.ndarray:
    return session(folder / name).run(None, {**ids, "noise": noise.numpy()})[0]


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert expected.std() > 10


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_the_image_is_diffusers(sd1: Path, size: tuple[int, int]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(sd1, torch_dtype=torch.float32)
    assert_alike(*drawn(sd1, *size, 1.0, pipeline))


def test_a_full_lcm_of_two_text_encoders(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its U-Net is told the sizes, the pooled text and the guidance."""
    pipeline = linked("ssd1b-lcm", tmp_path, graphs(tmp_path_factory))
    paths = {item.name: {"plain": f"{item.name}/model.onnx"} for item in components_of(tmp_path)}
    del paths["vae_encoder"]
    write_whole(tmp_path, paths, plan_loop(tmp_path, Preset("lcm", "LCMScheduler", STEPS, 8.5)))
    assert_alike(*drawn(tmp_path, 72, 64, 8.5, pipeline))


def test_fused_is_plain(sd1: Path) -> None:
    ids = {"input_ids": np.arange(154).reshape(2, 77) % 90}
    noise = torch.randn(STEPS, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_alike(run(sd1, ids, noise, "pipeline.fused.onnx"), run(sd1, ids, noise))


def test_steps_share_weights_and_text(sd1: Path) -> None:
    """A step more is nodes alone; the text's keys and values are computed once."""
    model = onnx.load(sd1 / "pipeline.onnx", load_external_data=False)
    unet = onnx.load(sd1 / "unet/model.onnx", load_external_data=False)
    names = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    stored = [tensor.name for tensor in unet.graph.initializer if tensor.external_data]
    assert sum(name.startswith("unet.") for name in names) == len(stored)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    transposed = [node for node in model.graph.node if key in node.input]
    assert [node.op_type for node in transposed] == ["Transpose"]
    assert sum(transposed[0].output[0] in node.input for node in model.graph.node) == 1
    assert len(model.graph.node) < 2 * STEPS * len(unet.graph.node)


def test_every_rule_holds_and_the_bytes_are_the_same(
    sd1: Path, files: Callable[[str], Files], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    onnx.checker.check_model(str(sd1 / "pipeline.onnx"), full_check=True)
    report = check(sd1, QUIET)
    assert report.broken == ()
    assert {"pipeline.onnx", "pipeline.fused.onnx"} < set(report.graphs)
    request = merge_of(str(files("sd1").folder("fp32")), tmp_path / "again", strengths=(1.0, 0.0))
    write(request, graphs(tmp_path_factory), dtype="fp32", fused=True, whole=STEPS, accelerator="lcm")
    for name in ("pipeline.onnx", "pipeline.fused.onnx", "lcmmerge.json"):
        assert (tmp_path / "again" / name).read_bytes() == (sd1 / name).read_bytes()


@pytest.mark.e2e
def test_a_new_lambda_reaches_it(
    files: Callable[[str], Files], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base, style = files("sd1").folder("fp32"), str(files("sd1").style)
    for name, strength in (("one", 0.2), ("other", 0.9)):
        request = merge_of(str(base), tmp_path / name, style, (strength, 0.0))
        write(request, graphs(tmp_path_factory), dtype="fp32", whole=1, accelerator="lcm")
    graph = (tmp_path / "one/pipeline.onnx").read_bytes()
    ids, noise = {"input_ids": np.full((1, 77), 7)}, torch.ones(1, 1, 4, 8, 8)
    before = run(tmp_path / "one", ids, noise)
    relambda(tmp_path / "one", {"style": 0.9}, [str(base), style], QUIET)
    assert (tmp_path / "one/pipeline.onnx").read_bytes() == graph
    after = run(tmp_path / "one", ids, noise)
    assert (after != before).any()
    assert (after == run(tmp_path / "other", ids, noise)).all()


def test_weights_of_another_component_or_behind_a_link(sd1: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sd1, tmp_path / "copy")
    weights = copy / "vae_decoder/diffusion_pytorch_model.safetensors"
    shutil.copyfile(copy / "vae_encoder" / weights.name, weights)
    with pytest.raises(IncompatibleError, match=r"has no 'vae_decoder\."):
        check_link(copy / "pipeline.onnx")
    shutil.rmtree(copy / "unet")
    (copy / "unet").symlink_to(sd1 / "unet")
    with pytest.raises(FormatError, match="unet: is a symbolic link"):
        check_link(copy / "pipeline.onnx")


def test_the_manifest_tells_how_it_is_called(sd1: Path) -> None:
    whole = read_manifest(sd1).whole
    assert whole["timesteps"] == [999, 499]
    assert whole["inputs"] == {
        "input_ids": ["batch", 77],
        "noise": [STEPS, "batch", 4, "latent_height", "latent_width"],
    }
    assert whole["shapes"]["dynamic"]["noise"][2] == [STEPS, 4, 4, 12, 12]


def test_what_has_no_whole_pipeline(files: Callable[[str], Files], tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, steps: int, **fields: str) -> None:
        request = merge_of(str(files("sd1").folder()), tmp_path / "out", strengths=(1.0, 0.0))
        with pytest.raises(error, match=match):
            prepare(ExportRequest(request, whole=steps, **fields))

    refused(IncompatibleError, "without guidance", 4)
    refused(LcmMergeError, "51 steps: LCMScheduler takes at most 50", 51, accelerator="lcm")


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_steps_are_the_schedulers(name: str, prediction: str) -> None:
    """A walk by the numbers, and one by the scheduler, with other noise than they were found with."""
    arguments = {"eta": 0.3} if name == "TCDScheduler" else {}
    preset = Preset(name, name, 4, 1.0, {"timestep_spacing": "trailing"}, arguments)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": prediction}
    steps, scheduler = steps_of(preset.build(config), preset), preset.build(config)
    scheduler.set_timesteps(4)
    noises, draws = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    found = torch.randn(50, generator=torch.Generator().manual_seed(0))
    expected = found * scheduler.init_noise_sigma
    for step, timestep in zip(steps, scheduler.timesteps, strict=True):
        assert step.timestep == timestep
        scaled = scheduler.scale_model_input(expected, timestep)
        torch.testing.assert_close(step.scale * found, scaled, rtol=1e-4, atol=1e-5)
        given = {**arguments, "generator": noises}
        given = {} if name == "DDIMScheduler" else given
        expected = scheduler.step(scaled.sin(), timestep, expected, **given, return_dict=False)[0]
        found = step.latents * found + step.prediction * (step.scale * found).sin()
        if step.noise:
            found = found + step.noise * torch.randn(50, generator=draws)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_scheduler_with_a_memory_is_refused() -> None:
    preset = Preset("dpm", "DPMSolverMultistepScheduler", 4, 1.0)
    with pytest.raises(IncompatibleError, match="more than a sum of latents"):
        steps_of(DPMSolverMultistepScheduler(), preset)
