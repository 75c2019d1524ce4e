"""TensorRT: profiles and the exact commands, for ONNX Runtime's provider, polygraphy and trtexec.

The graphs carry their types, and TensorRT 11 takes no others; TensorRT 10 wants to be told (``--stronglyTyped``, which
11 ignores), and ONNX Runtime asks for it where no ``trt_fp16_enable`` is set.
https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x-trtexec.html
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcmmerge.export.manifest import ExportManifest
from lcmmerge.export.targets import Target
from lcmmerge.refs.files import inside

FOLDER, ENGINES, CACHE = "tensorrt", "engines", "cache-"
ENDS = ("min", "opt", "max")
Shapes = Mapping[str, Sequence[Sequence[int]]]  # input → least, usual, most


def _write(folder: Path, manifest: ExportManifest) -> tuple[str, ...]:
    place = inside(folder, FOLDER)
    stale = sorted(path for path in place.glob("*") if _holds_engines(path))
    files = {"README.md": _readme(manifest)}
    for profile, said in manifest.profiles.items():
        options = {name: ort_options(manifest, name, profile) for name in said["shapes"]}
        files[f"ort/{profile}.json"] = json.dumps(options, indent=2) + "\n"
        for component in said["shapes"]:
            name = f"{component}-{profile}.txt"
            files[f"polygraphy/{name}"] = _lines(polygraphy(manifest, component, profile))
            files[f"trtexec/{name}"] = _lines(trtexec(manifest, component, profile))
    paths = {inside(folder, f"{FOLDER}/{name}"): text for name, text in files.items()}
    for path in stale:
        shutil.rmtree(path)
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tuple(f"{FOLDER}/{path.name}" for path in stale)


def _holds_engines(path: Path) -> bool:
    """Whether it is a folder of ours that engines are put into, and no link to one."""
    is_ours = path.name == ENGINES or re.fullmatch(f"{CACHE}[0-9a-f]{{12}}", path.name) is not None
    return is_ours and path.is_dir() and not path.is_symlink()


TARGET = Target("graphs, profiles and commands for TensorRT", frozenset({"fp16", "bf16"}), _write, grouped=True)


def graph(manifest: ExportManifest, component: str) -> str:
    """The graph that an engine is built of: with fused attention where there is one."""
    graphs = manifest.components[component]["graphs"]
    return str(graphs.get("fused", graphs["plain"])["path"])


def engine(component: str, profile: str) -> str:
    return f"{FOLDER}/{ENGINES}/{component}-{profile}.plan"


def ort_options(manifest: ExportManifest, component: str, profile: str) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider; paths are from the export's folder.

    The provider tells an engine in its cache by the graph alone, which a new λ leaves as it is: so the cache is named
    for the weights too.
    """
    said = manifest.profiles[profile]
    weights = manifest.files[manifest.components[component]["weights"]]["sha256"]
    return {
        **{
            f"trt_profile_{end}_shapes": ",".join(f"{name}:{_by('x', shape[number])}" for name, shape in shapes.items())
            for shapes in [said["shapes"][component]]
            for number, end in enumerate(ENDS)
        },
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{FOLDER}/{CACHE}{weights[:12]}",
        "trt_engine_cache_prefix": f"{component}-{profile}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": FOLDER,
        "trt_cuda_graph_enable": "1" if said["static"] else "0",
    }


def polygraphy(manifest: ExportManifest, component: str, profile: str) -> list[str]:
    """Arguments of ``polygraphy convert``."""
    shapes = manifest.profiles[profile]["shapes"][component]
    arguments = [graph(manifest, component), "--convert-to", "trt", "--strongly-typed"]
    for number, end in enumerate(ENDS):
        arguments += [f"--trt-{end}-shapes", *(f"{name}:[{_by(',', shape[number])}]" for name, shape in shapes.items())]
    return [*arguments, "-o", engine(component, profile)]


def trtexec(manifest: ExportManifest, component: str, profile: str) -> list[str]:
    shapes = manifest.profiles[profile]["shapes"][component]
    arguments = [f"--onnx={graph(manifest, component)}", "--stronglyTyped"]
    for number, end in enumerate(ENDS):
        spelled = ",".join(f"{name}:{_by('x', shape[number])}" for name, shape in shapes.items())
        arguments.append(f"--{end}Shapes={spelled}")
    return [*arguments, f"--saveEngine={engine(component, profile)}"]


def _by(mark: str, shape: Sequence[int]) -> str:
    return mark.join(map(str, shape))


def _lines(arguments: Sequence[str]) -> str:
    return "\n".join(arguments) + "\n"


def _readme(manifest: ExportManifest) -> str:
    return "\n".join(_paragraphs(manifest)) + "\n"


def _paragraphs(manifest: ExportManifest) -> Iterator[str]:
    yield "# Engines from this export\n"
    yield "Run everything in the export's own folder, where `lcmmerge.json` is. An engine holds the weights: after"
    yield "`lcmmerge relambda` build it anew. Build it on the GPU, and with the TensorRT, that it is to run with.\n"
    yield "| profile | images | width | height |\n| --- | --- | --- | --- |"
    for name, said in manifest.profiles.items():
        yield f"| {name} | {_span(said['images'])} | {_span(said['width'])} | {_span(said['height'])} |"
    for title, command in (("trtexec", "trtexec"), ("polygraphy", "polygraphy convert")):
        yield f"\n## {title}\n\n```sh\nmkdir -p {FOLDER}/{ENGINES}"
        for profile, said in manifest.profiles.items():
            for component in said["shapes"]:
                yield f"{command} $(cat {FOLDER}/{title}/{component}-{profile}.txt)"
        yield "```"
    yield "\n## ONNX Runtime\n\n```python\nimport json\nimport onnxruntime\n"
    profile = next(iter(manifest.profiles))
    yield f'options = json.load(open("{FOLDER}/ort/{profile}.json"))'
    for component in manifest.profiles[profile]["shapes"]:
        yield f'{component} = onnxruntime.InferenceSession("{graph(manifest, component)}",'
        yield f'    providers=[("TensorrtExecutionProvider", options["{component}"]), "CUDAExecutionProvider"])'
    yield "```"
    if manifest.named:
        yield from _demo(manifest)


def _demo(manifest: ExportManifest) -> Iterator[str]:
    weights = [manifest.components[item["component"]]["weights"] for item in manifest.named.values()]
    total = sum(manifest.files[file]["bytes"] for file in weights)
    yield f"""
## NVIDIA's diffusion demo

`model.nvidia.onnx` has the demo's names for inputs and outputs. The demo has a folder for each graph, and a graph's
weights lie beside it, where links are refused: so they are copied, {total / 1e9:.2f} GB in all (where files may share
their blocks, nothing), and copied again after `lcmmerge relambda`. Where the demo looks for a graph has changed: it was
`NAME.opt/model.onnx` below its `--onnx-dir`, and became `NAME/model_optimized.onnx` in a folder there that is named for
the pipeline. An engine of it has not been run in the demo.

```sh
demo=onnx   # its --onnx-dir"""
    for name, item in manifest.named.items():
        place = f'"$demo/{name}.opt"'
        yield f"mkdir -p {place} && cp --reflink=auto {manifest.components[item['component']]['weights']} {place}"
        yield f"cp {item['path']} {place}/model.onnx"
    yield "```"


def _span(values: Any) -> str:
    least, _, most = values
    return str(least) if least == most else f"{least}–{most}"
