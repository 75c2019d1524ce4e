"""Merges for tests, told as the command line tells them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcmmerge.cli import options
from lcmmerge.merge.spec import Merge, Written


def merge_of(
    base: Path | str,
    target: Path | None = None,
    style: Path | str | None = None,
    strengths: tuple[float, float] = (1.0, 1.0),
    lcm: Path | str | None = None,
    adapters: tuple[tuple[Path | str, float], ...] = (),
    *,
    tuned_from: Path | str | None = None,
    block_weights: Mapping[str, str] | None = None,
    variant: str | None = None,
    config_from: Path | str | None = None,
    accelerator: str | None = None,
    allow_unmatched: bool = False,
    method: str = "add",
    prediction: str | None = None,
    parts_from: Path | str | None = None,
    **output: Any,
) -> Merge:
    def text(reference: Path | str | None) -> str | None:
        return None if reference is None else str(reference)

    return options.merge_of(
        str(base),
        text(style),
        strengths,
        accelerators=[word for word in (text(lcm), accelerator) if word],
        adapters=[(str(reference), strength) for reference, strength in adapters],
        tuned_from=text(tuned_from),
        block_weights=block_weights,
        variant=variant,
        config_from=text(config_from),
        output=Written(target, **output),
        allow_unmatched=allow_unmatched,
        method=method,
        prediction=prediction,
        parts_from=text(parts_from),
    )
