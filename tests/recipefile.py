"""Recipes over pico files, and what a run leaves."""

from __future__ import annotations

from pathlib import Path

from fusing import Files, without_alpha

from lcmmerge.output import Output
from lcmmerge.recipe import runner
from lcmmerge.recipe.loader import load
from lcmmerge.recipe.manifest import RunManifest

TEXT = """\
version: 1
sources:
  base: {base}
  style: {style}
  lcm: {{reference: {lcm}, accelerator: lcm}}
fuse:
  base: base
  terms: {{style: 0.8, lcm: 1.0}}
"""


def recipe(folder: Path, files: Files, *, more: str = "", base: Path | None = None, name: str = "pico.yaml") -> Path:
    """The style and the LCM-LoRA of a pico, with lines after those of ``fuse``; sources are links in ``folder``."""
    links = {"base": base or files.base(), "style": files.style, "lcm": files.lcm}
    for link, target in links.items():
        place = folder / f"{link}{target.suffix}"
        if not place.is_symlink():
            place.symlink_to(target)
        links[link] = Path(place.name)
    path = folder / name
    path.write_text(TEXT.format(**links) + more)
    return path


def tell_alpha(path: Path) -> Path:
    """The recipe, with the alpha that the style's file has in it: 2."""
    style = path.with_name("style.safetensors")
    lora = style.resolve()
    style.unlink()
    without_alpha(lora, style)
    path.write_text(path.read_text().replace("style: 0.8", "style: {lambda: 0.8, alpha: 2}"))
    return path


def run(path: Path, out: Path, *sets: str, **asked: bool) -> RunManifest:
    return runner.run(load(path, sets), runner.RunRequest(out, sets, **asked), Output(quiet=True))[1]


def due(path: Path, out: Path, *sets: str) -> dict[str, str | None]:
    """Step → why it would be done, of a dry run."""
    prepared = runner.prepare(load(path, sets), runner.RunRequest(out, sets), dry_run=True)
    return {step.name: step.due for step in prepared.steps}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
