"""An export's graphs as sessions: on ONNX Runtime's providers, or node by node on torch.

A session is called with name → tensor and gives name → tensor, on its provider's device; in ONNX Runtime they are
bound where they lie, so that nothing is copied through the CPU. Providers:
https://onnxruntime.ai/docs/execution-providers/.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from packaging.version import Version
from torch import Tensor

from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError
from lcmmerge.export.manifest import ExportManifest, parameters_of, read_manifest
from lcmmerge.export.memory import available_memory, needed_by_ort
from lcmmerge.export.targets import targets
from lcmmerge.graphs.interpret import Interpreter
from lcmmerge.graphs.link import RELINK, check_link, read_graph
from lcmmerge.graphs.proof import FUSED_ON_CPU
from lcmmerge.graphs.rules import ONNX, Graph, label
from lcmmerge.refs.files import inside, read_object
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES
from lcmmerge.tensors.kept import user_cache

TORCH = "torch"  # the interpreter
ORT = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
PROVIDERS = (*ORT, TORCH)
VARIANTS = ("fused", "plain")
# The first ONNX Runtime that runs fused graphs as they are meant. Older ones have no Attention on CUDA.
FUSED = {"tensorrt": "1.25", "cuda": "1.25", "cpu": FUSED_ON_CPU}
INSTALL = "install onnxruntime-gpu with its CUDA and TensorRT libraries, or omit --provider"
# Of ONNX Runtime's TensorRT provider, those that an export writes; others load libraries, or write where they are told.
OPTIONS = {
    "trt_profile_(min|opt|max)_shapes": r"[\w.]+:\d+(x\d+)*(,[\w.]+:\d+(x\d+)*)*",
    "trt_(engine_cache|timing_cache|cuda_graph)_enable": "[01]",
    "trt_(engine|timing)_cache_path": r"tensorrt(/[\w.-]+)?",
    "trt_engine_cache_prefix": r"[\w.-]+",
}
NO_MEMORY = "Failed to allocate memory"
TOO_OLD = ("Unsupported model IR version", "ONNX Runtime only *guarantees* support for models stamped with official")


class Session(Protocol):
    """A graph to be called; tensors may lie anywhere, and come out on the session's device."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """An export and how it is run. ``dtypes``: component → that of its graph's floating inputs."""

    folder: Path
    manifest: ExportManifest
    provider: str
    device: torch.device
    sessions: Mapping[str, Session]
    dtypes: Mapping[str, torch.dtype]
    variants: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, component: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a component's graph; floating inputs are cast to its dtype."""
        dtype = self.dtypes[component]
        cast = {name: item.to(dtype) if item.is_floating_point() else item for name, item in inputs.items()}
        return self.sessions[component](cast)


def open_export(
    folder: Path,
    provider: str | None = None,
    *,
    variant: str | None = None,
    components: Callable[[str], bool] = lambda name: name != "vae_encoder",
    say: Callable[[str], None] = lambda text: None,
) -> Runtime:
    """Open an export's graphs, each after its link is checked.

    ``provider``: of PROVIDERS, by default what suits the graphs here; ``say`` is told which, and why. ``variant``: of
    VARIANTS, by default the fused where it is there and its provider takes it whole. Raises NotFoundError, FormatError,
    IncompatibleError, LcmMergeError (no such provider here).
    """
    manifest = read_manifest(folder)
    dtypes = {name: str(item["dtype"]) for name, item in manifest.components.items() if components(name)}
    chosen = choose_provider(provider, set(dtypes.values()), say, parameters=parameters_of(manifest, dtypes))
    sessions, variants = {}, {}
    for name in dtypes:
        graphs = manifest.components[name]["graphs"]
        variants[name] = _variant(graphs, variant, chosen, dtypes[name], manifest.target)
        graph = inside(folder, graphs[variants[name]]["path"])
        options = _options(folder, name, chosen)
        if options:
            options |= _engine_cache(folder, name, inside(folder, manifest.components[name]["weights"]))
        sessions[name] = open_session(graph, chosen, options)
    types = {name: OUTPUT_DTYPES[dtype].torch for name, dtype in dtypes.items()}
    return Runtime(folder, manifest, chosen, device_of(chosen), sessions, types, variants)


def choose_provider(
    asked: str | None, dtypes: set[str], say: Callable[[str], None] = lambda text: None, *, parameters: int = 0
) -> str:
    """``asked``, or what a person would take, for graphs of these ``dtypes`` and so many ``parameters``.

    On a CPU that is ONNX Runtime, but where it takes no such graphs or would take too much memory.
    Raises LcmMergeError.
    """
    able = [name for name in PROVIDERS if _usable(name) and not ("bf16" in dtypes and _lacks_bf16(name))]
    if asked and asked not in able:
        raise _absent(asked, able)
    chosen, reason = asked or next(name for name in able if name != "cpu"), ""
    if not asked and chosen == TORCH:
        reason = _why_torch(dtypes, parameters)
        chosen, reason = (TORCH, reason) if reason else ("cpu", "no GPU that ONNX Runtime could use")
    say(f"running on {describe(chosen)}{reason and f': {reason}'}")
    return chosen


def _why_torch(dtypes: set[str], parameters: int) -> str:
    """Why not ONNX Runtime's CPU provider; empty where nothing is against it."""
    if torch.cuda.is_available():
        return "ONNX Runtime's CUDA provider is not usable here"
    if not _usable("cpu"):
        return "ONNX Runtime is not usable here"
    if "bf16" in dtypes:
        return "ONNX Runtime takes no bf16 on the CPU"
    needed, available = needed_by_ort(parameters), available_memory()
    if "fp16" in dtypes:
        return f"ONNX Runtime widens fp16, to some {needed / 1e9:.1f} GB (--provider cpu: faster for many images)"
    if available is not None and needed > available:
        return f"ONNX Runtime would take some {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free"
    return ""


def _absent(asked: str, able: list[str]) -> LcmMergeError:
    if _usable(asked):
        newer = "" if asked == "cpu" else f", or install ONNX Runtime {FUSED[asked]} or later"
        what = f"ONNX Runtime's {asked.upper()} provider takes no bf16 graphs"
        return IncompatibleError(what, f"export --dtype fp32 or fp16{newer}")
    have = ", ".join(able)
    return LcmMergeError(f"provider {asked!r}: is not usable here; usable are {have}", INSTALL)


def _lacks_bf16(provider: str) -> bool:
    """The CPU's does in any version; bf16 graphs, like fused ones, are of opsets that older ones do not have."""
    return provider == "cpu" or (provider != TORCH and _is_older(FUSED[provider]))


def _is_older(version: str) -> bool:
    """Whether ONNX Runtime is."""
    import onnxruntime

    return Version(onnxruntime.__version__) < Version(version)


def describe(provider: str) -> str:
    by = "torch, node by node" if provider == TORCH else f"ONNX Runtime's {ORT[provider]}"
    return f"{device_of(provider)} by {by}"


def device_of(provider: str) -> torch.device:
    gpu = torch.cuda.is_available() if provider == TORCH else provider != "cpu"
    return torch.device("cuda", 0) if gpu else torch.device("cpu")


def _variant(graphs: Mapping[str, Any], asked: str | None, provider: str, dtype: str, target: str) -> str:
    if asked and asked not in graphs:
        asked = "plain"  # a VAE has no other
    return asked or ("fused" if "fused" in graphs and _takes_fused(provider, dtype, target) else "plain")


def _takes_fused(provider: str, dtype: str, target: str) -> bool:
    """TensorRT refuses fused attention in float32; GroupNormalization, which graphs for it have, it alone has."""
    if provider == TORCH:
        return True
    grouped = target in targets() and targets()[target].grouped
    suits = dtype != "fp32" if provider == "tensorrt" else not grouped
    return suits and not _is_older(FUSED[provider])


def _options(folder: Path, component: str, provider: str) -> dict[str, str]:
    """What ``export --to tensorrt`` wrote for ONNX Runtime's provider; its paths are from the export's folder."""
    file = folder / "tensorrt" / "ort" / "dynamic.json"
    if provider != "tensorrt" or not file.is_file():
        return {}
    try:
        options = {str(key): str(value) for key, value in read_object(file)[component].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        raise FormatError(f"{file}: has no options for {component}, or is damaged", RELINK) from None
    for key, value in options.items():
        if not any(re.fullmatch(known, key) and re.fullmatch(form, value) for known, form in OPTIONS.items()):
            raise FormatError(f"{file}: has the option {key} = {value!r}, which no export has", "do not trust it")
    return {key: str(inside(folder, value)) if key.endswith("_path") else value for key, value in options.items()}


def _engine_cache(folder: Path, component: str, weights: Path) -> dict[str, str]:
    """Options by which a component's engines are kept with the user, and not in the export.

    An engine is a program, loaded wherever the provider finds it: one that came with an export never is. The provider
    tells an engine by its graph alone, so the folder is named for the weights; those of older weights are removed.
    """
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    parent, current = user_cache("engines") / place[:16] / component, sha256_of([weights])[:16]
    try:
        (parent / current).mkdir(parents=True, exist_ok=True)
        for stale in parent.iterdir():
            if stale.name != current:
                shutil.rmtree(stale, ignore_errors=True)
    except OSError:  # it costs time alone
        return {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0"}
    return {"trt_engine_cache_path": str(parent / current), "trt_timing_cache_path": str(parent / current)}


def open_session(graph: Path, provider: str, options: Mapping[str, str] | None = None) -> Session:
    """A graph of its own. Raises NotFoundError, FormatError, IncompatibleError."""
    check_link(graph)
    _refuse_foreign(graph)
    if provider == TORCH:
        device = device_of(provider)
        return Interpreter(graph, device, widen=device.type == "cpu")
    return OrtSession(graph, provider, options or {})


def _refuse_foreign(graph: Path) -> None:
    """Operators of other domains are the runtime's own, some of which load files: ``EPContext`` an engine."""
    nodes = Graph(graph, graph.name, read_graph(graph), {}).nodes()
    if foreign := next((node for node in nodes if node.domain not in ONNX), None):
        raise FormatError(f"{graph}: {label(foreign)} is none of ONNX's own operators", RELINK)


class OrtSession:
    """ONNX Runtime's, with as many threads as torch has."""

    def __init__(self, graph: Path, provider: str, options: Mapping[str, str]) -> None:
        import onnxruntime

        self.graph, self.device = graph, device_of(provider)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = torch.get_num_threads()
        providers = [(ORT[provider], dict(options)), *([ORT["cuda"]] if provider == "tensorrt" else [])]
        with _quiet():
            try:
                self._session = onnxruntime.InferenceSession(graph, settings, providers=providers)
            except Exception as error:  # its kinds have no common base but Exception
                raise _refused(graph, error) from None
        if (given := self._session.get_providers()[0]) != ORT[provider]:
            raise LcmMergeError(f"{graph}: ONNX Runtime took {given} in place of {ORT[provider]}", INSTALL)
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = {name: inputs[name].to(self.device).contiguous() for name in self.inputs}
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # ONNX Runtime has a stream of its own
        try:
            return self._run(held)
        except Exception as error:
            raise _failed(self.graph, error) from None

    def _run(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding, place = self._session.io_binding(), (self.device.type, self.device.index or 0)
        for name, tensor in held.items():
            binding.bind_input(name, *place, ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        for name in self.outputs:
            binding.bind_output(name, *place)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return {name: _tensor(value) for name, value in zip(self.outputs, binding.get_outputs(), strict=True)}


class Memory:
    """An output of ONNX Runtime where it lies, as NumPy's and CUDA's array interfaces tell it; kept by who reads it.

    DLPack would tell it too, since ONNX Runtime 1.26. ``kind``: a type as those interfaces name it; none is bfloat16.
    """

    def __init__(self, value: Any, kind: str) -> None:
        self.value = value
        place = (value.data_ptr(), False)
        told = {"shape": tuple(value.shape()), "typestr": kind, "data": place, "strides": None, "version": 3}
        self.__array_interface__ = self.__cuda_array_interface__ = told


def _tensor(value: Any) -> Tensor:
    """Of an OrtValue, without a copy."""
    dtype = next(dtype for dtype, element in ELEMENTS.items() if element == value.element_type())
    stored = torch.int16 if dtype is torch.bfloat16 else dtype
    memory = Memory(value, f"<{'f' if stored.is_floating_point else 'i'}{stored.itemsize}")
    on_cpu = value.device_name() == "cpu"
    tensor = torch.from_numpy(np.asarray(memory)) if on_cpu else torch.as_tensor(memory, device="cuda")
    return tensor.view(dtype)


ELEMENTS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
}


def _refused(graph: Path, error: Exception) -> Exception:
    import onnxruntime

    text = " ".join(str(error).split())
    if NO_MEMORY in text:
        return MemoryError(text)
    if any(words in text for words in TOO_OLD):
        what = f"{graph}: ONNX Runtime {onnxruntime.__version__} is too old for it"
        return LcmMergeError(what, f"install {FUSED['cuda']} or later, or export --no-fused")
    return FormatError(f"{graph}: ONNX Runtime refuses it: {text[:300]}", "`lcmmerge check` says what is wrong with it")


def _failed(graph: Path, error: Exception) -> Exception:
    """Of a graph that it had taken."""
    import onnxruntime

    text = " ".join(f"{type(error).__name__}: {error}".split())
    if NO_MEMORY in text or isinstance(error, MemoryError):
        return MemoryError(text)
    what = f"{graph}: ONNX Runtime {onnxruntime.__version__} fails to run it: {text[:300]}"
    return LcmMergeError(what, "give another --provider, or install another onnxruntime")


@cache
def _usable(provider: str) -> bool:
    """Whether it runs here, not merely whether ONNX Runtime was built with it."""
    if provider == TORCH:
        return True
    try:
        import onnxruntime

        if provider != "cpu":
            ctypes.CDLL("libcuda.so.1")
    except (ImportError, OSError):
        return False
    if ORT[provider] not in onnxruntime.get_available_providers():
        return False
    with _quiet():
        session = onnxruntime.InferenceSession(_identity(), providers=[ORT[provider]])
    return bool(session.get_providers()[0] == ORT[provider])


def _identity() -> bytes:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime logs a library that it cannot load, and prints to stdout that it falls back."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)
