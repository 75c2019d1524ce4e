from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcmmerge.cli.candidates import REFERENCE
from lcmmerge.cli.common import few, output_options
from lcmmerge.cli.options import variant_option
from lcmmerge.output import Output, count, size

if TYPE_CHECKING:
    from lcmmerge.inspection import AdapterFacts, CheckpointFacts, Inspection

SHOWN = 72  # characters of a metadata value
FEW = 4  # ranks or alphas of a row


@click.command(short_help="Say what a checkpoint or an adapter is, from its headers.")
@click.argument("ref", type=REFERENCE)
@variant_option
@output_options
def inspect(ref: str, variant: str | None, output: Output) -> None:
    """Say what REF is: architecture, layout, dtypes, sizes, an adapter's algorithm, ranks and alphas, metadata.

    REF is a checkpoint or an adapter: a file, a shard index, a diffusers folder, or one of these on the Hub.
    Only headers are read, also there: no weights are downloaded.

    \b
      lcmmerge inspect base.safetensors
      lcmmerge inspect style.safetensors --json
      lcmmerge inspect hf://latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors
    """
    from lcmmerge.history import formula, older
    from lcmmerge.inspection import AdapterFacts, CheckpointFacts
    from lcmmerge.inspection import inspect as look
    from lcmmerge.tensors.remote import open_reference

    found = look(open_reference(ref, variant=variant, scalars=True))
    if output.as_json:
        output.json(found.as_dict())
        return
    match found.content:
        case CheckpointFacts() as facts:
            _show_checkpoint(found, facts, output)
        case AdapterFacts() as facts:
            _show_adapter(found, facts, output)
        case unknown:
            output.text(f"{unknown.remark}: {_size(found)}")
    if found.recipe:
        output.text(f"Recipe: {formula(found.recipe)}")
        for name, recipe in older(found.source).items():
            output.text(f"where {name} = {formula(recipe)}")
    _show_metadata(found, output)


def _show_checkpoint(found: Inspection, facts: CheckpointFacts, output: Output) -> None:
    model = facts.model
    output.text(f"{model.arch.title}, {model.purpose}, {model.layout}: {_size(found)}")
    output.table(
        "",
        ("component", "dtypes", "tensors", "parameters", "size"),
        [
            (part.name, ", ".join(part.dtypes), part.tensors, count(part.parameters), size(part.nbytes))
            for part in facts.parts
        ],
        numbers=3,
    )
    output.text(f"It {model.prediction}.")
    if any(parameter.untold for parameter in model.parameters.values()):
        output.warn("nothing tells whether its q, k and v lie one below another, or head by head; fuse --qkv-rows")
    if facts.missing:
        output.warn(f"its components lack {len(facts.missing)} parameters: {few(facts.missing, output)}")
    for name in facts.broken:
        output.warn(f"{name} is not 0, 1, 2 …: older programs read words at other places; fuse --mend-position-ids")
    if not facts.lora_modules:
        return
    official = f"; the official one is {facts.official_lcm}" if facts.official_lcm else ""
    trained = f"{count(facts.lora_parameters)} parameters in {facts.lora_modules} modules"
    output.text(f"An LCM-LoRA of rank 64 would train {trained}{official}.")


def _show_adapter(found: Inspection, facts: AdapterFacts, output: Output) -> None:
    made_for = facts.architecture or "an architecture that we do not know"
    grammars = ", ".join(facts.file.grammars) or "bare"
    output.text(f"Adapter for {made_for}, {grammars} names, {', '.join(found.whole.dtypes)}: {_size(found)}")
    output.table(
        "",
        ("component", "algorithm", "modules", "rank", "alpha", "parameters"),
        [
            (
                part.component,
                part.algorithm,
                part.modules,
                _values(part.ranks, output),
                _values(part.alphas, output),
                count(part.parameters),
            )
            for part in facts.parts
        ],
        numbers=4,
    )
    output.text(f"{count(facts.parameters)} trainable parameters.")
    if facts.file.embeddings:
        output.note(f"Textual-inversion embeddings: {few(facts.file.embeddings, output)}")
    if facts.file.unknown:
        output.warn(f"{len(facts.file.unknown)} names of no grammar: {few(facts.file.unknown, output)}")


def _show_metadata(found: Inspection, output: Output) -> None:
    rows = sorted(found.source.metadata.items())
    if rows:
        output.table("Metadata", ("key", "value"), [(key, _shortened(value, output)) for key, value in rows])


def _size(found: Inspection) -> str:
    whole = found.whole
    files = f" in {len(found.source.files)} files" if len(found.source.files) > 1 else ""
    what = f"{size(whole.nbytes)}, {whole.tensors} tensors, {count(whole.parameters)} parameters"
    return f"{Path(found.source.path).name}, {what}{files}"


def _values(counts: Mapping[Any, int], output: Output) -> str:
    """The values in use, smallest first; a range where there are too many."""
    values = sorted(counts)
    if len(values) > FEW and not output.verbose:
        return f"{values[0]:g} … {values[-1]:g}"
    return ", ".join(f"{value:g}" for value in values) or "–"


def _shortened(value: str, output: Output) -> str:
    return value if output.verbose or len(value) <= SHOWN else f"{value[: SHOWN - 1]}…"
