"""What memory is free, as stand-ins of the kernel's files say it; float16 on a CPU that has none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from onnx import helper, save

from lcmmerge.export import memory
from lcmmerge.export.manifest import parameters_of
from lcmmerge.export.memory import available_memory, needed_by_ort
from lcmmerge.export.runtime import open_session
from lcmmerge.graphs.interpret import Interpreter


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine with 8 GiB free."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemFree: 99 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "own").write_text("4:memory:/else\n0::/pod/box\n")
    (tmp_path / "cgroup/pod/box").mkdir(parents=True)
    for name, file in (("MEMINFO", "meminfo"), ("OWN_CGROUP", "own"), ("CGROUPS", "cgroup")):
        monkeypatch.setattr(memory, name, tmp_path / file)
    return tmp_path


def limit(group: Path, most: str, used: int, cached: int = 0) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_the_machine_s_own_count(kernel: Path) -> None:
    limit(kernel / "cgroup/pod/box", "max", 5)
    assert available_memory() == 8 * 2**30


def test_the_narrowest_group_limits_it(kernel: Path) -> None:
    """What it holds of files can be had again."""
    limit(kernel / "cgroup/pod", str(2**32), 2**31)
    assert available_memory() == 2**31
    limit(kernel / "cgroup/pod/box", str(2**30), 2**29, cached=2**20)
    assert available_memory() == 2**29 + 2**20
    limit(kernel / "cgroup/pod/box", str(2**30), 2**31)
    assert available_memory() == 0


def test_no_such_files(kernel: Path) -> None:
    for name in ("meminfo", "own"):
        (kernel / name).unlink()
    assert available_memory() is None


def test_what_onnx_runtime_takes_of_stable_diffusion() -> None:
    """7.1 GB were measured."""
    assert 7.0e9 < needed_by_ort(859_520_964 + 123_060_480 + 49_490_199) < 7.4e9


def test_parameters_are_counted_by_the_weights_bytes() -> None:
    files = {"a": {"bytes": 800}, "b": {"bytes": 800}}
    components = {"unet": {"weights": "a", "dtype": "fp16"}, "vae_decoder": {"weights": "b", "dtype": "fp32"}}
    manifest = SimpleNamespace(components=components, files=files)
    assert parameters_of(manifest, ["unet"]) == 400
    assert parameters_of(manifest, components) == 600


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Conv"])
def test_products_of_float16_are_those_of_float32_rounded_once(kind: str, tmp_path: Path) -> None:
    shape = [1, 64, 8, 8] if kind == "Conv" else [64, 64]
    ports = [helper.make_tensor_value_info(name, 10, None if name == "y" else shape) for name in "abcy"]
    inputs = ["a", "b"]
    graph = helper.make_graph([helper.make_node(kind, inputs, ["y"])], "product", ports[:2], ports[3:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", "torch")
    assert isinstance(session, Interpreter)
    torch.manual_seed(0)
    a, b = torch.randn(shape).half(), torch.randn(shape).half()
    exact = torch.conv2d(a.double(), b.double()) if kind == "Conv" else a.double() @ b.double()
    found = session({"a": a, "b": b})["y"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), exact, rtol=2**-11 * 1.01, atol=1e-4)
