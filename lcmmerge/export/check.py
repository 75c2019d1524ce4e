"""What can be known of an export's graphs without running them; ``rules`` holds what they are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lcmmerge.errors import CrashError, IncompatibleError, NotFoundError
from lcmmerge.export import rtx
from lcmmerge.export.manifest import ExportManifest, is_export, read_manifest
from lcmmerge.export.targets.tensorrt import TARGET
from lcmmerge.graphs.apart import apart
from lcmmerge.graphs.link import read_graph
from lcmmerge.graphs.profiles import WHOLE
from lcmmerge.graphs.rules import RULES, Graph, places
from lcmmerge.output import Output
from lcmmerge.refs.files import inside

REDO = "export the model again with the versions in constraints.txt; trust no graph from elsewhere"
TAKE_PLAIN = "give TensorRT the plain graphs: it fuses attention of the usual head sizes alone"


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a graph breaks.

    ``graph``: below the folder that was checked. ``rule``: of RULES, or TensorRT's parser or builder.
    """

    graph: str
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.graph}: {self.rule}: {self.what}"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that TensorRT built, to see whether it can. ``seconds``: of the build; ``nbytes``: with the weights."""

    graph: str
    seconds: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    ``graphs``: the titles of those that were looked at. ``engines``: those that TensorRT built of them.
    """

    folder: Path
    graphs: tuple[str, ...]
    broken: tuple[Broken, ...]
    engines: tuple[Engine, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        broken = [asdict(item) for item in self.broken]
        engines = [asdict(item) for item in self.engines]
        return {"folder": str(self.folder), "graphs": list(self.graphs), "broken": broken, "engines": engines}

    def check(self) -> None:
        """Raises IncompatibleError where a rule is broken."""
        if self.broken:
            count = f"{len(self.broken)} rules are broken" if len(self.broken) > 1 else "a rule is broken"
            by_tensorrt = {item.rule for item in self.broken} <= {"parser", "builder"}
            cure = TAKE_PLAIN if by_tensorrt else REDO
            raise IncompatibleError(f"{self.folder}: {count}", cure, [str(item) for item in self.broken])


def check(path: Path, output: Output, *, tensorrt: bool = False) -> CheckReport:
    """Check an export, or any folder of ONNX graphs, or one graph.

    ``tensorrt``: also have TensorRT-RTX parse the graphs, and build them for their first profile. Raises NotFoundError,
    FormatError, LcmMergeError (TensorRT-RTX is not installed).
    """
    if tensorrt:
        rtx.bindings()
    graphs = list(_graphs(path))
    broken: list[Broken] = []
    engines: list[Engine] = []
    with output.progress("check", len(graphs), "graphs") as progress:
        for graph in graphs:
            found = list(_by_rules(graph))
            if tensorrt and not found:
                found += _by_tensorrt(graph, engines, output)
            broken += found
            progress(1)
    return CheckReport(path, tuple(graph.title for graph in graphs), tuple(broken), tuple(engines))


def _by_rules(graph: Graph) -> Iterator[Broken]:
    """Of a graph whose data are out of place nothing else is read."""
    out_of_place = [Broken(graph.title, "places", what) for what in places(graph)]
    yield from out_of_place or (Broken(graph.title, rule, what) for rule, test in RULES.items() for what in test(graph))


def _by_tensorrt(graph: Graph, engines: list[Engine], output: Output) -> Iterator[Broken]:
    if graph.variant == "fused" and graph.dtype not in TARGET.fused:
        output.note(f"{graph.title}: left out, since TensorRT takes no fused attention in {graph.dtype}")
        return
    profile = next(iter(graph.profiles.values()), None)
    if profile is None:
        output.note(f"{graph.title}: parsed and not built, since it has no profile")
    try:
        built = apart(rtx.build, graph.path, profile)
    except CrashError as error:
        yield Broken(graph.title, "builder", error.message)
        return
    yield from (Broken(graph.title, built.stage, what) for what in built.problems)
    if built.nbytes:
        engines.append(Engine(graph.title, built.seconds, built.nbytes))


def _graphs(path: Path) -> Iterator[Graph]:
    """Raises NotFoundError (there are none), FormatError."""
    if is_export(path):
        yield from _exported(path, read_manifest(path))
        return
    files = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    if not files:
        raise NotFoundError(f"{path}: holds no ONNX graph", "`lcmmerge export` makes some")
    for file in files:
        yield Graph(file, file.name if path.is_file() else file.relative_to(path).as_posix(), read_graph(file), {})


def _exported(folder: Path, manifest: ExportManifest) -> Iterator[Graph]:
    for component, said in manifest.components.items():
        profiles = {name: item["shapes"].get(component, {}) for name, item in manifest.profiles.items()}
        for variant, graph in said["graphs"].items():
            path = inside(folder, graph["path"])
            yield Graph(path, graph["path"], read_graph(path), profiles, component, said["dtype"], variant)
    for graph in manifest.named.values():
        component, path = graph["component"], inside(folder, graph["path"])
        profiles = {
            name: {graph["inputs"].get(port, port): shapes for port, shapes in item["shapes"][component].items()}
            for name, item in manifest.profiles.items()
        }
        dtype = manifest.components[component]["dtype"]
        yield Graph(path, graph["path"], read_graph(path), profiles, component, dtype, "plain")
    for variant, graph in manifest.whole.get("graphs", {}).items():
        path = inside(folder, graph["path"])
        yield Graph(path, graph["path"], read_graph(path), manifest.whole["shapes"], WHOLE, manifest.dtype, variant)
