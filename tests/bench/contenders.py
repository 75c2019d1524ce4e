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
# How large a file in an encoding is beside the base's 16 bits a number.
SHARES = {"fp8_scaled": 0.5, "int8_convrot": 0.5, "mxfp8": 0.52, "nvfp4": 0.28, "gguf:q8_0": 0.53, "gguf:q4_0": 0.28}
CONVERT = {"fp8_scaled": (), "int8_convrot": ("--int8", "--scaling_mode", "row", "--convrot")}


def quantising(encoding: str) -> dict[str, Contender]:
    """A merge into an encoding, and what quantises alone, without any merge."""
    output = "out.gguf" if encoding.startswith("gguf:") else "out.safetensors"

    def fuse(folder: Path, output: Path) -> list[str]:
        return [*lcmmerge(folder, output), "--encoding", encoding]

    def read_and_write(folder: Path, output: Path) -> list[str]:
        base, _, _ = files(folder)
        size = str(int(Path(base).stat().st_size * SHARES[encoding]))
        script = 'cat "$1" > /dev/null && head -c "$3" "$1" > "$2" && sync "$2"'
        return ["sh", "-c", script, "sh", base, str(output), size]

    def quantise(folder: Path, output: Path) -> list[str]:
        return [sys.executable, str(PEERS / "quantise.py"), encoding, files(folder)[0], str(output)]

    def convert(folder: Path, output: Path) -> list[str]:
        command = [str(Path(sys.executable).with_name("convert_to_quant")), "-i", files(folder)[0], "-o", str(output)]
        return [*command, "--comfy_quant", "--simple", "--low-memory", "--device", "cpu", *CONVERT[encoding]]

    library = "gguf" if output == "out.gguf" else "comfy-kitchen"
    found = {
        "cp": Contender("read and write", read_and_write, "the base, and as much as the output", output, merges=False),
        "lcmmerge": Contender("lcmmerge fuse", fuse, "the merge, and the encoding", output, merges=False),
        "library": Contender(library, quantise, "quantising alone", output, merges=False, packages=(library, "torch")),
    }  # fmt: skip
    if encoding in CONVERT:
        note, packages = "quantising alone, its simple way", ("convert-to-quant",)
        found["convert"] = Contender("convert_to_quant", convert, note, output, merges=False, packages=packages)
    return found


YARDSTICKS = ("cp", "gemms")
PEER_NAMES = tuple(name for name in CONTENDERS if name not in (*YARDSTICKS, "lcmmerge"))
