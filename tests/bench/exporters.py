"""What ``export.py`` measures in processes of their own: ``python exporters.py TASK …`` prints JSON.

``unet MODEL CONFIGS DTYPE OUT CACHE``  the U-Net's part of an export: its weight file by the merge engine, its graphs,
                                       plain and fused, traced or from CACHE, and linked; seconds of each
``link GRAPH WEIGHTS``                  seconds of linking a graph, and of the check that every runtime starts with
``parity EXPORT COMPONENT…``            the graphs under ONNX Runtime against torch in float32, at six sizes
``opened GRAPH…``                       CPU seconds until ONNX Runtime has opened a graph, as it is exported, and with
                                       nothing told of inner values' shapes
``parse GRAPH…``                        lcmmerge's own rules, and TensorRT-RTX's parser; nothing is built
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from lcmmerge.draw import quiet_libraries

REPEATS = 20
Found = dict[str, Any]


class Stages:
    """Seconds of each, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def unet(model: str, configs: str, dtype: str, out: str, cache: str) -> Found:
    from merging import merge_of

    from lcmmerge.bake.execute import execute
    from lcmmerge.export.bundle import GRAPHS
    from lcmmerge.export.request import ExportRequest, prepare
    from lcmmerge.export.weights import header
    from lcmmerge.graphs.cache import cached
    from lcmmerge.graphs.link import check_link, link
    from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

    stages, target = Stages(), Path(out)
    with stages("plan"):
        merge = merge_of(model, target, None, (1.0, 0.0), config_from=configs)
        prepared = prepare(ExportRequest(merge, dtype=dtype, cache=Path(cache)))
        component = next(component for component in prepared.components if component.name == "unet")
        files = tuple(file for file in prepared.plan.files if file.path.parent.name == "unet")
    folder = target / "unet"
    folder.mkdir(parents=True)
    with stages("weights"):
        execute(replace(prepared.plan, files=files), target, header, prepared.request.settings, lambda nbytes: None)
    for variant, name in GRAPHS.items():
        with stages("graphs"):
            graph = cached(component, OUTPUT_DTYPES[dtype].torch, variant, Path(cache))
        with stages("link"):
            (folder / name).write_bytes(link(graph, folder / component.weights))
            check_link(folder / name)
    return {"seconds": stages.seconds, "graph_bytes": [(folder / name).stat().st_size for name in GRAPHS.values()]}


def link(graph: str, weights: str) -> Found:
    from lcmmerge.graphs.link import check_link, link

    data = Path(graph).read_bytes()
    return {
        "parameters": data.count(b"\n\x06offset"),
        "link": _median(lambda: link(data, Path(weights))),
        "check": _median(lambda: check_link(Path(graph))),
    }


def _median(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def parity(folder: str, *names: str) -> Found:
    from lcmmerge.export.manifest import read_manifest
    from lcmmerge.export.parity import parity
    from lcmmerge.output import Output

    manifest = read_manifest(Path(folder))
    components = {name: said for name, said in manifest.components.items() if name in names}
    return parity(Path(folder), replace(manifest, components=components), Output(quiet=True))


def opened(*graphs: str) -> Found:
    import onnx

    found = {}
    for graph in map(Path, graphs):
        bare = graph.with_name(f"bare-{graph.name}")
        model = onnx.load(graph, load_external_data=False)
        del model.graph.value_info[:]
        onnx.save(model, bare)
        found[str(graph)] = {"told": _opening(graph), "bare": _opening(bare), "bytes": graph.stat().st_size,
                             "bare_bytes": bare.stat().st_size}  # fmt: skip
        bare.unlink()
    return found


def _opening(graph: Path) -> float:
    import onnxruntime

    begin = time.process_time()
    onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return time.process_time() - begin


def parse(*graphs: str) -> Found:
    from lcmmerge.export import rtx
    from lcmmerge.export.check import check
    from lcmmerge.output import Output

    found = {}
    for graph in graphs:
        broken = [str(item) for item in check(Path(graph), Output(quiet=True)).broken]
        begin = time.perf_counter()
        problems = rtx.build(Path(graph), None).problems
        found[graph] = {"broken": broken, "problems": problems, "seconds": time.perf_counter() - begin}
    return found


TASKS: dict[str, Callable[..., Found]] = {
    "unet": unet, "link": link, "opened": opened, "parity": parity, "parse": parse
}  # fmt: skip


def main(task: str, *arguments: str) -> None:
    quiet_libraries()
    with os.fdopen(os.dup(1), "w") as told:  # TensorRT-RTX and others print where they like
        os.dup2(2, 1)
        found = TASKS[task](*arguments)
        told.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
