"""What may stand at a place of the command line, for completion: files by suffix, names of registries, usual λs.

An option or argument of one name means the same in every command, so one table at the end says what completes it. No
weights are opened, and no registry whose modules need torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import lcmmerge
from lcmmerge.cli.shells import words_of

Items = list[CompletionItem[str]]
Complete = Callable[[click.Context, click.Parameter, str], Items]

# λ1 and λ2; whose they are is said only of published pairs: https://arxiv.org/abs/2311.05556,
# https://huggingface.co/docs/diffusers/using-diffusers/inference_with_tcd_lora
STYLE = {
    "1.0": "as it was trained",
    "0.8": "with λ2 1.0: Papercut in the LCM-LoRA report",
    "0.6": "weaker",
    "1.2": "stronger",
}
ACCELERATION = {
    "1.0": "as it was trained",
    "0.8": "weaker",
    "0.0": "none, for comparison",
}
GRIDS = {"style": ("0.4:1.2:0.2", "0.6:1.0:0.2"), "lcm": ("0.6:1.2:0.2", "0.8,1.0")}


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _files(incomplete, (".yaml", ".yml"))


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Checkpoints and adapters: files, a shard index, and folders on the way or to be taken."""
    return _files(incomplete, (".safetensors", ".ckpt", ".pt", ".bin", ".safetensors.index.json"))


def accelerators(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    from lcmmerge.accelerators import ENTRIES

    return _begun(incomplete, {entry.name: f"{', '.join(entry.files)}; {entry.sampling}" for entry in ENTRIES})


def acceleration(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """A name or a file."""
    return [*accelerators(ctx, param, incomplete), *models(ctx, param, incomplete)]


def architectures(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    from lcmmerge.archs import architectures

    return _begun(incomplete, {name: arch.title for name, arch in architectures().items()})


def objectives(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, objective_names())


def objective_names() -> list[str]:
    return [name.replace("_", "-") for name in registered("studies.objectives", "OBJECTIVE")]


def targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, registered("graphs.targets", "TARGET"))


def registered(package: str, variable: str) -> list[str]:
    """The names of a registry, from its files and not their modules: those of ``registry.entries``."""
    folder = Path(*lcmmerge.__path__, *package.split("."))
    defined = re.compile(rf"^{variable}\b", re.MULTILINE)
    own = [path.stem for path in folder.glob("*.py") if defined.search(path.read_text("utf-8"))]
    others = [point.name for point in entry_points(group=f"lcmmerge.{package.rpartition('.')[2]}")]
    return sorted({*own, *others})


def variants(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, ("fp16", "bf16", "non_ema"))


def devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, ("cpu", "cuda", "cuda:0", "cuda:1", "mps"))


def components(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, ("unet", "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2"))


def profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, ("dynamic", "512x512", "768x512", "1024x1024"))


def lambdas(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """λ1, then λ2."""
    return _begun(incomplete, STYLE if _place(ctx, param) == 0 else ACCELERATION)


def adapters_and_lambdas(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """``REF λ``."""
    return models(ctx, param, incomplete) if _place(ctx, param) == 0 else _begun(incomplete, ("1.0", "0.8", "0.5"))


def alternating(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """``ADAPTER λ ADAPTER λ …``."""
    given = ctx.params.get(param.name or "") or ()
    return models(ctx, param, incomplete) if len(given) % 2 == 0 else _begun(incomplete, ("1.0", "0.8", "0.5"))


def paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return [CompletionItem(incomplete, type="file")]


def sizes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _begun(incomplete, ("512x512", "768x512", "512x768", "768x768", "1024x1024"))


def terms(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """``TERM SPEC``, or ``TERM λ``; only the first can be foretold."""
    return _begun(incomplete, _terms(ctx)) if _place(ctx, param) == 0 else []


def grid(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """``style=``, then ``style=0.4:1.2:0.2``."""
    term, equals, _ = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{name}=", type="part") for name in _terms(ctx) if name.startswith(term)]
    return _begun(incomplete, [f"{term}={values}" for values in GRIDS.get(term, GRIDS["style"])])


def _terms(ctx: click.Context) -> list[str]:
    """``style``, ``lcm``, and the names of the files of ``--adapter``."""
    words = words_of(ctx)
    named = [Path(word).stem for option, word in pairwise(words) if option == "--adapter"]
    return ["style", "lcm", *named]


def _place(ctx: click.Context, param: click.Parameter) -> int:
    """Which of the values of an option is completed, from 0."""
    return next((place for place, word in enumerate(reversed(words_of(ctx))) if word in param.opts), 0)


def _begun(incomplete: str, found: Mapping[str, str] | Iterable[str]) -> Items:
    helps = found if isinstance(found, Mapping) else {}
    return [CompletionItem(name, help=helps.get(name)) for name in found if name.startswith(incomplete)]


def _files(incomplete: str, suffixes: tuple[str, ...]) -> Items:
    """Folders, with a ``/``, and files with a suffix."""
    head, slash, begun = incomplete.rpartition("/")
    return [
        CompletionItem(f"{head}{slash}{name}", type="path")
        for name in sorted(_entries(Path(f"{head}{slash}" or "."), suffixes))
        if name.startswith(begun) and (begun or not name.startswith("."))
    ]


def _entries(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    try:
        for path in folder.expanduser().iterdir():
            if path.is_dir():
                yield f"{path.name}/"
            elif path.name.lower().endswith(suffixes):
                yield path.name
    except (OSError, RuntimeError):  # no folder, or not ours to read: or nobody's home
        return


COMPLETERS: Mapping[str, Complete] = {
    **dict.fromkeys(("base", "style", "model", "tuned", "ref", "file"), models),
    **dict.fromkeys(("--base", "--config-from", "--live", "--source", "--tuned-from"), models),
    "recipe": recipes,
    "arch": architectures,
    "terms": alternating,
    "--accelerator": accelerators,
    "--adapter": adapters_and_lambdas,
    "--block": terms,
    "--block-weights": terms,
    "--build": profiles,
    "--component": components,
    "--data": paths,
    "--device": devices,
    "--grid": grid,
    "--lambda": lambdas,
    "--lcm": acceleration,
    "--objective": objectives,
    "--size": sizes,
    "--static": sizes,
    "--term": terms,
    "--to": targets,
    "--variant": variants,
}


def attach(command: click.Command) -> None:
    """Have the parameters of a command complete themselves by the table; the others do it by their types."""
    for param in command.params:
        complete = next((COMPLETERS[name] for name in param.opts if name in COMPLETERS), None)
        if complete:
            param.shell_complete = partial(_complete, complete, param)  # type: ignore[method-assign]


def _complete(complete: Complete, param: click.Parameter, ctx: click.Context, incomplete: str) -> Items:
    return complete(ctx, param, incomplete)
