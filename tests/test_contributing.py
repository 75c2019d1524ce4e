"""docs/contributing.md: its picture is the import graph's, and its seven examples work as a third party's package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import house
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from exporting import graphs
from fusing import Files, canonical, load
from peft import HRAConfig, get_peft_model
from pico import CROSS_DOWN, CROSS_UP, DOWN, TINY, UP, canonical_state, pico
from recipefile import recipe
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/contributing.md").read_text("utf-8")
EXAMPLES = re.findall(r"`lcmmerge/((?:\w+/)+)(\w+)\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
VARIABLES = {
    "adapters": "ADAPTER",
    "archs": "ARCHITECTURE",
    "encodings": "ENCODING",
    "methods": "METHOD",
    "objectives": "OBJECTIVE",
    "targets": "TARGET",
    "steps": "STEP",
}
# What every registered entry must keep to, for the new ones: selected by their names.
CONFORMANCE = (
    *("adapters/test_conformance.py", "archs/test_identify.py", "archs/test_tables.py", "archs/test_targets.py"),
    *("tensors/encodings/test_conformance.py", "merge/methods/test_conformance.py"),
    *("search/test_objectives.py", "export/test_targets.py", "recipe/test_steps.py"),
)
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples as an installed distribution, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site-packages")
    package, metadata = folder / "yours", folder / "yours-1.0.dist-info"
    package.mkdir()
    (package / "__init__.py").touch()
    lines = []
    for room, name, code in EXAMPLES:
        (package / f"{name}.py").write_text(code)
        group = Path(room).name
        lines += [f"[lcmmerge.{group}]", f"{name} = yours.{name}:{VARIABLES[group]}"]
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: yours\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def lcmmerge(theirs: Path, tmp_path: Path) -> Callable[..., str]:
    """The command line, where that distribution is installed."""

    def run(*words: object, module: str = "lcmmerge") -> str:
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(theirs), *sys.path]), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def inputs(files: Callable[[str], Files]) -> Files:
    return files("sd1")


def test_the_picture_is_the_code_s() -> None:
    """``python tests/house.py`` prints a new one."""
    assert f"```mermaid\n{house.picture()}```" in PAGE


def test_each_example_is_one_short_file() -> None:
    assert [Path(room).name for room, _, _ in EXAMPLES] == list(VARIABLES)
    assert all(len(code.splitlines()) <= 35 for _, _, code in EXAMPLES)
    ours = {name for group in VARIABLES for name in entry_points(group=f"lcmmerge.{group}").names}
    assert not ours & {name for _, name, _ in EXAMPLES}


@pytest.mark.e2e
def test_conformance_tests_find_them(lcmmerge: Callable[..., str], tmp_path: Path) -> None:
    names = " or ".join(name.replace("_", "-") if "objectives" in room else name for room, name, _ in EXAMPLES)
    files = [ROOT / "tests" / file for file in CONFORMANCE]
    shown = lcmmerge(*files, "-vv", "-n0", "-k", names, "--rootdir", ROOT, "-p", "no:cacheprovider", module="pytest")
    assert re.search(r"(\d+) passed", shown) and "failed" not in shown
    for _, name, _ in EXAMPLES:
        assert re.search(rf"\[[^\]]*{name}[^\]]*\] PASSED", shown), name


@pytest.mark.e2e
def test_an_adapter_fuses(lcmmerge: Callable[..., str], inputs: Files, tmp_path: Path) -> None:
    """Oracle: PEFT merges its own file; its configuration says that the reflections are made orthogonal."""
    unet = UNet2DConditionModel.from_pretrained(inputs.folder("fp32") / "unet")
    torch.manual_seed(0)
    settings = HRAConfig(r=2, target_modules=["to_q"], init_weights=False, apply_GS=True)
    tuned = get_peft_model(unet, settings)
    tuned.save_pretrained(tmp_path / "hra")
    file = tmp_path / "hra" / "adapter_model.safetensors"
    base = inputs.base("fp32")
    lcmmerge("fuse", base, file, "--lambda", 1, 0, "--threads", 1, "-o", tmp_path / "fused.safetensors")
    expected = canonical_state({"unet": tuned.merge_and_unload()})
    found, before = canonical(tmp_path / "fused.safetensors"), canonical(base)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, found[name])}
    assert changed == {name for name in expected if name.endswith("to_q.weight")}


@pytest.mark.e2e
def test_an_architecture_is_recognised_and_fused(lcmmerge: Callable[..., str], tmp_path: Path) -> None:
    """A checkpoint of diffusers' own, from the published config at a tiny width."""
    config = {
        "block_out_channels": (8, 16, 32, 32), "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP, CROSS_UP),
    }  # fmt: skip
    torch.manual_seed(0)
    parts = {**pico("sd1").pipeline.components, "unet": UNet2DConditionModel(**(TINY | config))}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "base")
    up, down = torch.randn(8, 2), torch.randn(2, 8)
    key = f"lora_unet_{BLOCK.replace('.', '_')}"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, tmp_path / "style.safetensors")
    assert "BK-SDM Base" in lcmmerge("inspect", tmp_path / "base")
    single = ("--layout", "single-file", "-o", tmp_path / "fused.safetensors")
    lcmmerge("fuse", tmp_path / "base", tmp_path / "style.safetensors", "--lambda", 0.5, 0, "--threads", 1, *single)
    assert "BK-SDM Base" in lcmmerge("inspect", tmp_path / "fused.safetensors")
    found = StableDiffusionPipeline.from_single_file(
        tmp_path / "fused.safetensors", config=str(tmp_path / "base"), local_files_only=True
    )
    weights = parts["unet"].state_dict()
    weights[f"{BLOCK}.weight"] = weights[f"{BLOCK}.weight"] + 0.5 * up @ down
    for name, tensor in found.unet.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-6, atol=1e-6)


@pytest.mark.e2e
def test_an_encoding_is_written_verified_and_inspected(
    lcmmerge: Callable[..., str], inputs: Files, tmp_path: Path
) -> None:
    base, merge = inputs.base("fp32"), (inputs.base("fp32"), inputs.style, "--lcm", inputs.lcm, "--threads", 1)
    lcmmerge("fuse", *merge, "--encoding", "int8_rows", "-o", tmp_path / "fused.safetensors")
    lcmmerge("fuse", *merge, "-o", tmp_path / "exact.safetensors")
    lcmmerge("verify", tmp_path / "fused.safetensors", "--source", inputs.root)
    described = json.loads(lcmmerge("inspect", "--json", tmp_path / "fused.safetensors"))
    found, exact = load(tmp_path / "fused.safetensors"), load(tmp_path / "exact.safetensors")
    scales = {name.removesuffix("_scale"): found[name] for name in found if name.endswith(".weight_scale")}
    assert found.keys() == exact.keys() | {f"{name}_scale" for name in scales}
    assert described["recipe"]["encoding"] == "int8_rows"
    assert set(described["metadata"]["int8_rows"].split()) == scales.keys()
    for name, tensor in exact.items():
        if name in scales:
            assert (found[name].dtype, scales[name].shape) == (torch.int8, (len(tensor), 1))
            error = found[name].flatten(1) * scales[name] - tensor.flatten(1)
            assert (error.abs() <= 0.50001 * scales[name]).all()
        else:
            assert torch.equal(found[name], tensor)
    assert any(not torch.equal(tensor, exact[name]) for name, tensor in load(base).items() if name in scales)


@pytest.mark.slow("three commands, each with an entry point in an interpreter of its own")
def test_a_method_merges(lcmmerge: Callable[..., str], inputs: Files, tmp_path: Path) -> None:
    """Oracle: the larger of what each LoRA changes when it is merged alone."""
    base, merged = inputs.base("fp32"), {}
    for name, terms in {
        "style": (inputs.style, "--lambda", 0.8, 0),
        "lcm": ("--lcm", inputs.lcm, "--lambda", 1, 0.5),
        "both": (inputs.style, "--lcm", inputs.lcm, "--lambda", 0.8, 0.5, "--method", "magmax"),
    }.items():
        file = tmp_path / f"{name}.safetensors"
        lcmmerge("fuse", base, *terms, "--threads", 1, "-o", file)
        merged[name] = canonical(file)
    for name, before in canonical(base).items():
        style, lcm = (merged[term][name] - before for term in ("style", "lcm"))
        expected = before + torch.where(style.abs() >= lcm.abs(), style, lcm)
        torch.testing.assert_close(merged["both"][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.e2e
def test_an_objective_scores(lcmmerge: Callable[..., str], inputs: Files, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    report = json.loads(
        lcmmerge(
            "search", inputs.folder("fp32"), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm", "--json",
            "--grid", "style=0.5,1.0", "--objective", "contrast", "--prompts", "prompts.txt", "-o", "study",
            "--size", "64x64", "--steps", 1, "--count", 1, "--guidance", 1,
        )
    )  # fmt: skip
    cells = [row for row in report["rows"] if row["kind"] == "cell"]
    assert cells
    assert all("contrast error" in json.dumps(row) for row in cells)


@pytest.mark.e2e
def test_a_target_is_written(
    lcmmerge: Callable[..., str], inputs: Files, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    export = tmp_path / "export"
    lcmmerge("export", inputs.folder(), "--to", "openvino", "--cache", graphs(tmp_path_factory), "-o", export)
    script = (export / "openvino/convert.sh").read_text().splitlines()
    subprocess.run(["sh", "-n", export / "openvino/convert.sh"], check=True)
    assert script[2:] == [
        "ovc text_encoder/model.onnx --output_model openvino/text_encoder.xml --input 'input_ids[?,77]'",
        "ovc unet/model.onnx --output_model openvino/unet.xml "
        "--input 'sample[?,4,?,?],timestep[],encoder_hidden_states[?,?,16]'",
        "ovc vae_decoder/model.onnx --output_model openvino/vae_decoder.xml --input 'latent_sample[?,4,?,?]'",
        "ovc vae_encoder/model.onnx --output_model openvino/vae_encoder.xml --input 'sample[?,3,?,?]'",
    ]
    assert all((export / line.split()[1]).is_file() for line in script[2:])


@pytest.mark.e2e
def test_a_step_is_done_once(lcmmerge: Callable[..., str], inputs: Files, tmp_path: Path) -> None:
    """Oracle: coreutils check the hashes."""
    path = recipe(tmp_path, inputs, base=inputs.folder(), more="checksums: {algorithm: blake2b}\n")
    lcmmerge("run", path, "-o", "out")
    out = tmp_path / "out"
    subprocess.run(["b2sum", "--check", "--strict", "checksums/pico.txt"], cwd=out, check=True)
    record = json.loads((out / "run.json").read_text())["steps"]["checksums pico"]
    assert list(record["outputs"]) == ["checksums/pico.txt"]
    assert record["figures"] == {"files": len((out / "checksums/pico.txt").read_text().splitlines())}
    plan = json.loads(lcmmerge("run", path, "-o", "out", "--dry-run", "--json", "--set", "checksums.algorithm=sha256"))
    assert {step["step"]: step["because"] for step in plan["steps"]} == {
        "fuse pico": None, "card pico": None, "checksums pico": "its inputs or parameters changed",
    }  # fmt: skip
