"""Who runs: the command of each contender over one folder of files, and what has to be said beside its numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
LAMBDAS = ("0.8", "1.0")


@dataclass(frozen=True, slots=True)
class Contender:
    """``command(folder, output)``. ``output`` is the file's or folder's name, empty when nothing is written.

    ``merges``: the output is a merge, to be compared with the reference. ``packages`` must be installed.
    ``self_timed``: its standard output says {"wall", "cpu"}, which count instead of the process's. ``kinds``: of the
    models that it merges.
    """

    title: str
    command: Callable[[Path, Path], list[str]]
    note: str
    output: str = "out.safetensors"
    merges: bool = True
    packages: tuple[str, ...] = ()
    self_timed: bool = False
    kinds: tuple[str, ...] = ("unet", "transformer")


def lcmmerge(folder: Path, output: Path) -> list[str]:
    base, style, lcm = files(folder)
    command = [sys.executable, "-m", "lcmmerge", "fuse", base, style, "--lambda", *LAMBDAS, "--lcm", lcm]
    return [*command, "-o", str(output), "--force"]


def copy(folder: Path, output: Path) -> list[str]:
    return ["sh", "-c", 'cp --reflink=never "$1" "$2" && sync "$2"', "sh", files(folder)[0], str(output)]


def gemms(folder: Path, output: Path) -> list[str]:
    return [sys.executable, str(PEERS / "gemms.py"), str(folder)]


def mecha(folder: Path, output: Path) -> list[str]:
    base, style, lcm = files(folder)
    return [sys.executable, str(PEERS / "mecha.py"), base, style, LAMBDAS[0], lcm, LAMBDAS[1], str(output)]


def diffusers(scope: str) -> Callable[[Path, Path], list[str]]:
    def command(folder: Path, output: Path) -> list[str]:
        base, style, lcm = files(folder)
        script = [sys.executable, str(PEERS / "diffusers_peft.py"), scope, str(folder / "config")]
        return [*script, base, style, LAMBDAS[0], lcm, LAMBDAS[1], str(output)]

    return command


def files(folder: Path) -> tuple[str, str, str]:
    """The base, the style and the LCM-LoRA."""
    base, style, lcm = (str(folder / f"{name}.safetensors") for name in ("base", "style", "lcm"))
    return base, style, lcm


CONTENDERS = {
    "cp": Contender("cp + fsync", copy, "the base file, copied by cp and synced", merges=False),
    "gemms": Contender(
        "GEMMs and casts alone",
        gemms,
        "in memory, without imports; one thread per core",
        output="",
        merges=False,
        packages=("torch",),
        self_timed=True,
    ),
    "lcmmerge": Contender("lcmmerge fuse", lcmmerge, "a whole process, synced output", packages=("lcmmerge", "torch")),
    "sd-mecha": Contender(
        "sd-mecha",
        mecha,
        "fp32 in between, own threads and buffers, finiteness checks off; SD1 needs a fault in 1.1.8 mended",
        packages=("sd-mecha", "torch"),
        kinds=("unet",),
    ),
    "diffusers-unet": Contender(
        "diffusers + PEFT, U-Net only",
        diffusers("unet"),
        "half precision; no text encoders, no VAE in the output",
        output="out",
        packages=("diffusers", "peft", "transformers", "torch"),
        kinds=("unet",),
    ),
    "diffusers-transformer": Contender(
        "diffusers + PEFT",
        diffusers("transformer"),
        "half precision, all of it in memory; a diffusers folder",
        output="out",
        packages=("diffusers", "peft", "torch"),
        kinds=("transformer",),
    ),
    "diffusers": Contender(
        "diffusers + PEFT, pipeline",
        diffusers("pipeline"),
        "half precision; a diffusers folder without tokenizers",
        output="out",
        packages=("diffusers", "peft", "transformers", "torch"),
        kinds=("unet",),
    ),
}
YARDSTICKS = ("cp", "gemms")
PEER_NAMES = tuple(name for name in CONTENDERS if name not in (*YARDSTICKS, "lcmmerge"))
