"""docs/serving.md: its programs run in the runtimes that it names, by its own commands, and agree with ONNX Runtime."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cudastubs import installed
from exporting import cache_home, exported
from filelock import FileLock
from fusing import Files
from running import exact
from transformers import CLIPTokenizer

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[1] / "docs/serving.md").read_text("utf-8")
PROGRAMS = dict(re.findall(r"`(\w+\.\w+)`[^`]*:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [shlex.split(line) for block in SHELL for line in block.splitlines()]
BOUNDS = {"fp32": 1e-4, "fp16": 5e-3}  # of an output's range
SAMPLE = (1, 4, 16, 24)


@pytest.fixture(params=list(BOUNDS))
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def exports(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The pico's, by dtype; to be left as they are."""
    makers = {"fp32": exact, "fp16": exported}
    return lambda dtype: makers[dtype](tmp_path_factory, files("sd1"))


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """``run(program, export)``: what the page's commands for it leave in the folder that it runs in."""

    def run(program: str, export: Path) -> Path:
        number = next(number for number, words in enumerate(COMMANDS) if program in words)
        (tmp_path / program).write_text(PROGRAMS[program], "utf-8")
        shutil.copytree(export, tmp_path / "graphs")
        env: dict[str, str] = {"PATH": _path()}
        if (before := COMMANDS[number - 1])[0] in INSTALLERS:
            place = INSTALLERS[before[0]](before, cache_home(tmp_path_factory))
            env["PYTHONPATH"] = str(place)
            if before[0] == "npm":
                (tmp_path / "node_modules").symlink_to(place / "node_modules")
        command = [sys.executable if word == "python" else word for word in COMMANDS[number]]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path

    return run


def _path() -> str:
    return str(Path(node).parent) if (node := shutil.which("node")) else ""


def _by_pip(command: Sequence[str], cache: Path) -> Path:
    return installed(cache / "-".join(["pip", *command[2:]]), *command[2:])


def _by_npm(command: Sequence[str], cache: Path) -> Path:
    """A folder with ``node_modules``; skips where node or the registry is missing."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("no node and npm here")
    folder = cache / "-".join(["npm", command[-1].replace("/", "-")])
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            quiet = ("--no-audit", "--no-fund", "--prefix", str(part))
            done = subprocess.run([*command, *quiet], cwd=part, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm cannot install {command[-1]}: {done.stderr.strip()[-200:]}")
            part.rename(folder)
    return folder


INSTALLERS = {"pip": _by_pip, "npm": _by_npm}


def reference(graph: Path, output: str, **inputs: Any) -> np.ndarray[Any, Any]:
    """ONNX Runtime's. Floating inputs are cast to what the graph takes."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    types = {port.name: port.type for port in session.get_inputs()}
    halves = {name for name, kind in types.items() if kind == "tensor(float16)"}
    given = {name: item.astype(np.float16) if name in halves else item for name, item in inputs.items()}
    return np.asarray(session.run([output], given)[0])


def noise(*shape: int) -> np.ndarray[Any, Any]:
    """As the page makes it."""
    return np.sin(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


def of_unet(graph: Path) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (width,) = (port.shape[2] for port in session.get_inputs() if port.name == "encoder_hidden_states")
    states = noise(1, 77, width)
    return reference(graph, "out_sample", sample=noise(*SAMPLE), timestep=np.array(499), encoder_hidden_states=states)


def assert_near(file: Path, expected: np.ndarray[Any, Any], bound: float) -> None:
    found = np.fromfile(file, expected.dtype).reshape(expected.shape)
    difference = np.abs(found.astype(float) - expected.astype(float)).max()
    assert difference <= bound * np.ptp(expected.astype(float))
    assert np.ptp(expected) > 0.01


def test_every_program_has_its_command() -> None:
    assert {word for words in COMMANDS for word in words} >= PROGRAMS.keys() and len(PROGRAMS) == 5


@pytest.mark.parametrize("program", ["openvino_unet.py", "node_unet.mjs"])
def test_a_unet(program: str, dtype: str, exports: Callable[[str], Path], run: Callable[[str, Path], Path]) -> None:
    folder = run(program, exports(dtype))
    assert_near(folder / "out_sample.bin", of_unet(folder / "graphs/unet/model.onnx"), BOUNDS[dtype])


def test_a_text_encoder_in_transformers_js(
    dtype: str, exports: Callable[[str], Path], run: Callable[[str, Path], Path]
) -> None:
    folder = run("text.mjs", exports(dtype))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "graphs/tokenizer")
    graph = folder / "graphs/text_encoder/model.onnx"
    length = onnx.load(graph, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    ids = tokenizer("a red fox", padding="max_length", max_length=length, truncation=True, return_tensors="np")
    expected = reference(graph, "last_hidden_state", input_ids=ids["input_ids"])
    assert_near(folder / "last_hidden_state.bin", expected, BOUNDS[dtype])


def test_a_decoder_in_wasm(exports: Callable[[str], Path], run: Callable[[str, Path], Path]) -> None:
    """In Node."""
    folder = run("web.mjs", exports("fp32"))
    expected = reference(folder / "graphs/vae_decoder/model.onnx", "sample", latent_sample=noise(*SAMPLE))
    assert_near(folder / "sample.bin", expected, BOUNDS["fp32"])


def test_folded_first_all_products_are_quantised(
    exports: Callable[[str], Path], run: Callable[[str, Path], Path]
) -> None:
    folder = run("quantise.py", exports("fp32"))
    graph = folder / "graphs/unet/model.onnx"
    kinds = [node.op_type for node in onnx.load(folder / "int8.onnx").graph.node]
    weights = sum(node.op_type == "Transpose" for node in onnx.load(graph, load_external_data=False).graph.node)
    assert kinds.count("MatMulInteger") >= 100 and weights >= 100
    assert np.abs(of_unet(folder / "int8.onnx") - of_unet(graph)).max() <= 0.1 * np.ptp(of_unet(graph))
