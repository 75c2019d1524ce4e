"""Per-block strengths in the merge-block-weight convention: BASE, IN00…, M00, OUT00… of the LDM UNet.

BASE is everything outside the UNet (text encoders, VAE); the time and label embeddings count as IN00 and the output
layers as the last OUT, as in the convention's original (bbc-mc/sdweb-merge-block-weighted-gui).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lcmmerge.archs import Model
from lcmmerge.errors import OptionError
from lcmmerge.merge.outcome import LARGEST
from lcmmerge.refs.weights import SINGLE_FILE

_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)")
_PREFIX = {"input_blocks": "IN", "output_blocks": "OUT"}
GRAMMAR = "give one number per block, or pairs such as IN04=0.5,OUT00-OUT03=0 (others stay at 1)"


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """A factor on λ per block; blocks that are not named have 1."""

    factors: Mapping[str, float] = field(default_factory=dict)

    def of(self, parameter: str, model: Model) -> float:
        return self.factors.get(block_of(parameter, model), 1.0) if self.factors else 1.0


def block_of(parameter: str, model: Model) -> str:
    """``unet.down_blocks.1.attentions.0…`` → ``IN04``."""
    component, _, rest = parameter.partition(".")
    if component != "unet":
        return "BASE"
    found = _BLOCK.search(model.arch.keymap(SINGLE_FILE).slots[parameter].stored)
    if found is None:
        return blocks(model)[-1] if rest.startswith(("conv_norm_out", "conv_out")) else "IN00"
    kind, number = found.groups()
    return "M00" if kind == "middle_block" else f"{_PREFIX[kind]}{int(number):02}"


def blocks(model: Model) -> tuple[str, ...]:
    """The block names of an architecture in the convention's order, BASE first."""
    down = model.arch.unet.down
    inputs = 1 + sum(map(len, down)) + len(down) - 1  # the input convolution, the layers, the downsamplers
    return (
        "BASE",
        *(f"IN{number:02}" for number in range(inputs)),
        "M00",
        *(f"OUT{number:02}" for number in range(inputs)),
    )


def parse_block_weights(text: str, model: Model) -> BlockWeights:
    """``1,0.5,…`` (one number per block, with or without BASE) or ``IN04=0.5,OUT00-OUT03=0``."""
    names = blocks(model)
    items = [item.strip() for item in text.split(",") if item.strip()]
    try:
        if "=" in text:
            factors = {name: factor for item in items for name, factor in _span(item, names).items()}
        elif len(items) in (len(names), len(names) - 1):
            factors = dict(zip(names[-len(items) :], map(_number, items), strict=True))
        else:
            raise ValueError(f"{len(items)} numbers, for {len(names)} blocks ({len(names) - 1} without BASE)")
    except ValueError as error:
        raise OptionError(f"--block-weights {text!r}: {model.arch.title}: {error}", GRAMMAR) from None
    return BlockWeights(MappingProxyType(factors))


def _span(item: str, names: tuple[str, ...]) -> dict[str, float]:
    """``IN04=0.5`` or ``OUT00-OUT03=0``."""
    span, _, value = item.partition("=")
    first, _, last = (name.strip() for name in span.partition("-"))
    last = last or first
    if unknown := {first, last} - set(names):
        raise ValueError(f"no block {min(unknown)!r}; the blocks are {', '.join(names)}")
    begin, end = names.index(first), names.index(last)
    if begin > end:
        raise ValueError(f"{first} comes after {last}")
    return dict.fromkeys(names[begin : end + 1], _number(value))


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no number") from None
    if not abs(number) <= LARGEST:
        raise ValueError(f"{text.strip()!r} is no finite number of float32")
    return number
