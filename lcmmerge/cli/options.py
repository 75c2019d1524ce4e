"""The options that several commands have, declared once, and the merge that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from lcmmerge.cli.candidates import ACCELERATOR, REFERENCE, NameType, Weighed, methods
from lcmmerge.cli.common import ADAPTER_DTYPE, SEEDS, STRENGTH, THREADS, Pixels

if TYPE_CHECKING:
    from lcmmerge.merge.spec import Merge, Term, Written

Command = Callable[..., None]
Option = Callable[[Command], Command]
Value = TypeVar("Value")


def together(*options: Option) -> Option:
    """The options as one decorator, in this order."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def lambda_option(what: str) -> Option:
    return click.option(
        "--lambda", "lambdas", nargs=2, type=STRENGTH, metavar="λ1 λ2",
        help=f"Strength of the {what}.  [default: 1, and the accelerator's usual one]",
    )  # fmt: skip


def accelerator_option(*names: str, what: str) -> Option:
    """``names``: by default both, where they mean the same."""
    return click.option(
        *(names or ("--accelerator", "--lcm")), type=ACCELERATOR, multiple=True, metavar="REF|NAME", help=what
    )


merged_option = accelerator_option(
    what="The acceleration LoRA: a file, or a name of `lcmmerge accelerators`; or both, the file and what it is.  "
    "[default: the architecture's official LCM-LoRA]",
)


def held_options(merge: str) -> Option:
    """Of commands whose MODEL may hold an accelerator already. ``merge``: what asks for one to be merged."""
    return together(
        accelerator_option(
            "--accelerator",
            what="The acceleration LoRA: a file, or a name of `lcmmerge accelerators`; or both, the file and what it "
            f"is. A name without {merge} is what MODEL holds already: it is drawn so.",
        ),
        accelerator_option("--lcm", what="The same, and a name alone is merged, too."),
    )


def tuned_from_option(base: str) -> Option:
    return click.option(
        "--tuned-from", type=REFERENCE, metavar="REF",
        help=f"What a STYLE checkpoint was tuned from.  [default: {base}]",
    )  # fmt: skip


made_from_option = click.option(
    "--made-from", type=REFERENCE, metavar="REF",
    help="What an acceleration checkpoint, given as --lcm, was distilled from.  [default: BASE]",
)  # fmt: skip


def by_term(_: click.Context, option: click.Parameter, pairs: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    return once_each(pairs, option.opts[0])


expert_option = click.option(
    "--expert", "experts", nargs=2, multiple=True, callback=by_term, metavar="TERM COMPONENT",
    help="Which of several denoisers a term is for: `lcm transformer_2` of Wan 2.2. TERM: as in --block-weights.",
)
alpha_option = click.option(
    "--alpha", "alphas", nargs=2, type=(str, float), multiple=True, callback=by_term, metavar="TERM NUMBER",
    help="The alpha that an adapter's publisher states, where its file has none: `style 64`. TERM: style, lcm, or an "
    "adapter's file name without its suffix.",
)  # fmt: skip
method_option = click.option(
    "--method", type=NameType(methods), default="add", show_default=True, metavar="METHOD",
    help="How the terms are merged: add is base + Σ λτ; ties, or ties:density=0.2, trims each term to its largest 20 % "
    "and lets disagreeing ones vote; also breadcrumbs, dare, della, magnitude_prune, norm_cap (the sum is no longer "
    "than its longest term: against over-saturation), orthogonal (what two terms share counts once), slerp (of two).",
)  # fmt: skip
adapter_option = click.option(
    "--adapter", "adapters", type=Weighed([str, STRENGTH]), multiple=True, metavar="REF λ", help="One more term."
)
config_option = click.option(
    "--config-from", type=REFERENCE, metavar="REF", help="Configs, scheduler and tokenizers for a single file."
)
prediction_option = click.option(
    "--prediction", type=click.Choice(["epsilon", "v", "v-zero-snr"]),
    help="What the model predicts, where its files do not say it.",
)  # fmt: skip
qkv_rows_option = click.option(
    "--qkv-rows", type=click.Choice(["stacked", "interleaved"]),
    help="Whether q, k and v, where BASE has them in one, lie one below another, or head by head, as in MiniMax-H3's "
    "own shards.",
)  # fmt: skip
variant_option = click.option("--variant", help="Which weights of a diffusers folder, such as fp16.")
device_option = click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
sources_option = click.option(
    "--source", "sources", type=REFERENCE, multiple=True, metavar="REF", help="A source, or a folder with sources."
)
threads_option = click.option("--threads", type=THREADS, default=0, help="[default: one per core, at most four]")
arithmetic_options = together(
    click.option("--device", default="cpu", show_default=True, help="Where the arithmetic is done: cpu, cuda, cuda:1."),
    threads_option,
)
drawing_options = together(
    config_option,
    prediction_option,
    variant_option,
    click.option("--dtype", type=ADAPTER_DTYPE, help="[default: fp16 on a GPU, else fp32]"),
    device_option,
)
size_option = click.option(
    "--size", type=Pixels(), metavar="WxH", help="[default: the size that the model was trained at]"
)
seed_option = click.option(
    "--seed", type=SEEDS, default=0, show_default=True, help="Of each prompt's first image."
)


def merge_of(
    base: str,
    style: str | None,
    lambdas: tuple[float, float] | None = None,
    *,
    accelerators: Sequence[str] = (),
    adapters: Sequence[tuple[str, float]] = (),
    tuned_from: str | None = None,
    made_from: str | None = None,
    block_weights: Mapping[str, str] | None = None,
    experts: Mapping[str, str] | None = None,
    alphas: Mapping[str, float] | None = None,
    variant: str | None = None,
    config_from: str | None = None,
    output: Written | None = None,
    allow_unmatched: bool = False,
    method: str = "add",
    prediction: str | None = None,
    parts_from: str | None = None,
    qkv_rows: str | None = None,
) -> Merge:
    """The merge that the options describe: STYLE at λ1, the acceleration LoRA at λ2, then the adapters.

    ``accelerators``: as ``acceleration`` takes them.

    Raises OptionError, NotFoundError for a name that no accelerator has.
    """
    from lcmmerge.errors import OptionError
    from lcmmerge.merge.methods import parse
    from lcmmerge.merge.spec import STYLE, Merge, Source, Term, Written, distinct

    first, second = lambdas or (1.0, None)
    origin = Source(tuned_from) if tuned_from else None
    wanted = [Term(STYLE, Source(style), first, made_from=origin)] if style else []
    if fast := acceleration(accelerators, second):
        wanted.append(replace(fast, made_from=Source(made_from) if made_from else None))
    wanted += [Term(Path(reference).stem, Source(reference), each, made_from=origin) for reference, each in adapters]
    names = distinct([term.name for term in wanted])
    blocks, experts, alphas = block_weights or {}, experts or {}, alphas or {}
    for what, given in {"block weights": blocks, "an expert": experts, "an alpha": alphas}.items():
        if strangers := sorted(given.keys() - {*names}):
            known = f"the terms are {', '.join(names)}" if names else "nothing is merged: omit it, or give STYLE"
            raise OptionError(f"{what} for {strangers[0]!r}: no such term", known)
    terms = [
        replace(term, name=name, blocks=blocks.get(name, ""), expert=experts.get(name), alpha=alphas.get(name))
        for name, term in zip(names, wanted, strict=True)
    ]
    name, parameters = parse(method)
    return Merge(
        Source(base, variant=variant),
        terms,
        name,
        output=output or Written(),
        config_from=config_from,
        allow_unmatched=allow_unmatched,
        parameters=parameters,
        prediction=prediction,
        parts_from=parts_from,
        qkv_rows=qkv_rows,
    )


def acceleration(given: Sequence[str], strength: float | None) -> Term | None:
    """λ2's term: a file, a name of the table, or both; of nothing the official LCM-LoRA, unless λ2 is 0.

    Raises NotFoundError, OptionError.
    """
    from lcmmerge.accelerators import OFFICIAL
    from lcmmerge.errors import OptionError
    from lcmmerge.merge.spec import LCM, USUAL, Source, Term

    if not given and strength == 0:
        return None
    files, said = [word for word in given if is_file(word)], named(given)
    if len(files) > 1:
        cause = f"the accelerator is one file, not {files[0]} and {files[1]}"
        raise OptionError(cause, "add the other by --adapter REF λ")
    source = Source(files[0]) if files else None
    return Term(
        LCM,
        source,
        USUAL if strength is None else strength,
        accelerator=said or (None if source else OFFICIAL.name),
    )


def is_file(word: str) -> bool:
    """Whether it stands for a file, and not for an accelerator by name: a path that exists is none."""
    from lcmmerge.accelerators import NAME

    return Path(word).exists() or not NAME.fullmatch(word)


def named(given: Sequence[str]) -> str | None:
    """The one accelerator that is named. Raises NotFoundError, OptionError."""
    from lcmmerge.accelerators import accelerator
    from lcmmerge.errors import OptionError

    found = list(dict.fromkeys(accelerator(word).name for word in given if not is_file(word)))
    if len(found) > 1:
        cause = f"the accelerator is {found[0]}, not {found[1]}"
        raise OptionError(cause, f"merge one by --accelerator {found[0]}, and the other's file by --adapter REF λ")
    return found[0] if found else None


def once_each(pairs: Sequence[tuple[str, Value]], option: str) -> dict[str, Value]:
    """Raises UsageError where an option is given twice for one term."""
    if len(dict(pairs)) < len(pairs):
        raise click.UsageError(f"{option} is given twice for one term.")
    return dict(pairs)


def is_given(name: str) -> bool:
    """Whether a parameter of the running command was given, and is not its default."""
    return click.get_current_context().get_parameter_source(name) != ParameterSource.DEFAULT
