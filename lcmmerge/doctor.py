"""What this machine gives lcmmerge: versions, devices, providers, caches, free disk, and what each extra would add."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from lcmmerge.extras import EXTRAS
from lcmmerge.version import __version__

PACKAGE = "lcmmerge"


@dataclass(frozen=True, slots=True)
class Package:
    """A package that lcmmerge needs, and the version that is here.

    ``found``: the installed version; ``fits``: it is one that ``wanted`` allows.
    """

    name: str
    wanted: str
    found: str | None
    fits: bool


@dataclass(frozen=True, slots=True)
class ExtraState:
    """Whether an extra is installed. ``lacking``: the packages that are not installed."""

    name: str
    gain: str
    lacking: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """A folder that we write to. Bytes: ``held``, of a cache, else None; ``free``, on its disk."""

    what: str
    path: Path
    held: int | None
    free: int


@dataclass(frozen=True, slots=True)
class Checkup:
    """What `lcmmerge doctor` found.

    ``devices``: where arithmetic and drawing can be done; ``providers``: of ONNX Runtime, None without it.
    """

    system: str
    packages: tuple[Package, ...]
    extras: tuple[ExtraState, ...]
    devices: tuple[str, ...]
    providers: tuple[str, ...] | None
    places: tuple[WrittenFolder, ...]

    @property
    def faults(self) -> tuple[Package, ...]:
        """What lcmmerge cannot do without, and is not there as it should be."""
        return tuple(package for package in self.packages if not package.fits)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"places": [asdict(place) | {"path": str(place.path)} for place in self.places]}


def check_up() -> Checkup:
    """Look; nothing is written, and no network is used."""
    wanted = [Requirement(line) for line in requires(PACKAGE) or ()]
    main = [requirement for requirement in wanted if _holds(requirement)]
    return Checkup(
        f"{PACKAGE} {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        tuple(map(_package, main)),
        tuple(ExtraState(name, extra.adds, tuple(_lacking(name, wanted))) for name, extra in EXTRAS.items()),
        tuple(_devices()),
        _providers(),
        tuple(_places()),
    )


def _holds(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement) -> Package:
    found = _installed(requirement.name)
    fits = found is not None and requirement.specifier.contains(found, prereleases=True)
    return Package(requirement.name, str(requirement.specifier), found, fits)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lacking(extra: str, wanted: list[Requirement]) -> Iterator[str]:
    """Also of the extras that it builds on, which are requirements of our own package."""
    for requirement in wanted:
        if requirement.marker and not _holds(requirement) and _holds(requirement, extra):
            if requirement.name == PACKAGE:
                for other in sorted(requirement.extras):
                    yield from _lacking(other, wanted)
            elif not _package(requirement).fits:
                yield requirement.name


def _devices() -> Iterator[str]:
    import torch

    yield f"cpu: {os.cpu_count()} cores"
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps: Apple's GPU"


def _providers() -> tuple[str, ...] | None:
    """What ONNX Runtime was built with; whether a GPU is there shows when a session is opened."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    return tuple(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())


def _places() -> Iterator[WrittenFolder]:
    from huggingface_hub import constants

    from lcmmerge.graphs.cache import default_folder
    from lcmmerge.tensors.kept import user_cache

    yield _place("downloads", Path(constants.HF_HUB_CACHE), cache=True)
    yield _place("graphs of exports", Path(os.environ.get("LCMMERGE_CACHE") or default_folder()), cache=True)
    yield _place("sha256 of large files", user_cache("sha256"), cache=True)
    yield _place("outputs, unless said otherwise", Path.cwd(), cache=False)


def _place(what: str, path: Path, *, cache: bool) -> WrittenFolder:
    there = next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
    return WrittenFolder(what, path, _held(path) if cache else None, shutil.disk_usage(there).free)


def _held(folder: Path) -> int:
    """A link counts as one, so that what the Hub's snapshots lead to is counted once."""
    names = ((root, name) for root, _, files in os.walk(folder) for name in files)
    return sum(os.lstat(Path(root, name)).st_size for root, name in names)
