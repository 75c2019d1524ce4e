"""``lcmmerge.json``: what an export is made of, what is in it, and how close it was found to be.

No clock and no local path.

``recipe`` is the merge, in the words of a merged file's own ``sd_merge_recipe``; ``references`` says where those of its
sources are that lie on the Hub. ``components``: name → folder, weights, dtype, graphs, inputs and outputs.
``sampling`` is how it is drawn, ``profiles`` the shapes that engines are built for, ``whole`` the graphs that are a
whole pipeline, with their timesteps, shapes for each profile, inputs and outputs; ``named`` graphs with the names of
another program, by its names for them; ``files`` bytes and sha256 of all the others. ``unfinished``: while weight files
of another λ take the places of the old ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.history import RECIPE
from lcmmerge.merge.recorded import read_merge
from lcmmerge.merge.spec import Merge
from lcmmerge.refs.files import read_object
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES
from lcmmerge.version import __version__

NAME = "lcmmerge.json"
VERSION = 1
NOTHING: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxruntime-gpu", "onnxruntime")


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """What an export says of itself, in lcmmerge.json.

    ``model``: what was exported, or merged into. ``parity``: component → figures, ``image_parity`` those of
    an image; empty where none were taken.
    """

    model: Mapping[str, str]
    architecture: str
    target: str
    dtype: str
    components: Mapping[str, Mapping[str, Any]]
    sampling: Mapping[str, Any]
    recipe: Mapping[str, Any]
    references: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    parity: Mapping[str, Any] = field(default_factory=dict)
    image_parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unfinished: bool = False

    @property
    def merge(self) -> Merge:
        """What was merged. Raises FormatError."""
        text = json.dumps(self.recipe)
        return read_merge(TensorSource(Path(NAME), "diffusers", {}, (), {RECIPE: text}))

    @property
    def graphs(self) -> tuple[str, ...]:
        """Paths below the export's folder."""
        items = [*self.components.values(), *([self.whole] if self.whole else [])]
        graphs = [graph for item in items for graph in item["graphs"].values()]
        return tuple(graph["path"] for graph in (*graphs, *self.named.values()))

    def write(self, folder: Path) -> None:
        content = {"version": VERSION, "lcmmerge": __version__, **asdict(self)}
        (folder / NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_manifest(folder: Path, *, unfinished: bool = False) -> ExportManifest:
    """``unfinished``: take one whose λ was being changed, too. Raises NotFoundError, FormatError."""
    from lcmmerge.export.schema import Content

    path = folder / NAME
    if not path.is_file():
        raise NotFoundError(f"{folder}: has no {NAME}, so it is not an export", "`lcmmerge export` makes one")
    try:
        content = read_object(path)
        if content.pop("version") != VERSION:
            raise ValueError
        del content["lcmmerge"]
        manifest = ExportManifest(**content)
        Content.model_validate(asdict(manifest))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{path}: is not a manifest of this version, or damaged", "export the model again") from None
    if manifest.unfinished and not unfinished:
        cure = "run `lcmmerge relambda` again, which writes them all"
        raise FormatError(f"{folder}: a change of λ was cut off, so its weights may be of two λs", cure)
    return manifest


def parameters_of(manifest: ExportManifest, components: Iterable[str]) -> int:
    """How many numbers the weights of some components are."""
    items = [manifest.components[name] for name in components]
    return sum(manifest.files[item["weights"]]["bytes"] // OUTPUT_DTYPES[item["dtype"]].itemsize for item in items)


def is_export(path: Path) -> bool:
    return (path / NAME).is_file()


def described(
    folder: Path, paths: Iterable[Path], known: Mapping[str, Mapping[str, Any]] = NOTHING
) -> dict[str, Mapping[str, Any]]:
    """Path below ``folder`` → bytes and sha256; those that are ``known`` are not read."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {
        name: known.get(name) or {"bytes": path.stat().st_size, "sha256": sha256_of([path])}
        for name, path in names.items()
    }


def contents(folder: Path) -> list[Path]:
    """Every file but the manifest."""
    return [path for path in folder.rglob("*") if path.is_file() and path != folder / NAME]


def versions() -> dict[str, str]:
    """Of the libraries that a graph depends on, as far as they are installed."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
