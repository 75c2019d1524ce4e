"""Per-block strengths in the merge-block-weight convention: BASE, IN00…, M00, OUT00… of the LDM U-Net, B00 … of a list.

BASE is everything outside the denoiser (text encoders, VAE), and what of a transformer serves every block. Blocks are
named alike wherever a person names them: ``IN04``, ``IN00-IN05``, and ``IN``, ``M``, ``OUT`` for all of a kind.
Of ``IN02,IN04=0.5`` the first is refused, and not guessed to share the number, which a slip may have lost. A search's
``IN,M=0:1.5`` is no factor of both, but two dimensions, each with that range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lcmmerge.archs.base import Model
from lcmmerge.archs.component import BASE
from lcmmerge.errors import OptionError
from lcmmerge.refs.weights import SINGLE_FILE
from lcmmerge.tensors.dtypes import LARGEST

GRAMMAR = "give one number per block, or pairs such as IN04=0.5,M=0,OUT00-OUT03=0 (others stay at 1)"


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """A factor on λ per block; blocks that are not named have 1."""

    factors: Mapping[str, float] = field(default_factory=dict)

    def of(self, parameter: str, model: Model) -> float:
        return self.factors.get(block_of(parameter, model), 1.0) if self.factors else 1.0


def block_of(parameter: str, model: Model) -> str:
    """``unet.down_blocks.1.attentions.0…`` → ``IN04``."""
    component = parameter.partition(".")[0]
    denoisers = (model.arch.denoiser, *model.arch.experts)
    denoiser = next((part for part in denoisers if part.name == component), None)
    return denoiser.block_of(model.arch.keymap(SINGLE_FILE).slots[parameter]) if denoiser else BASE


def blocks(model: Model) -> tuple[str, ...]:
    """The block names of an architecture in the convention's order, BASE first."""
    return model.arch.denoiser.blocks()


def parse_block_weights(text: str, model: Model) -> BlockWeights:
    """``1,0.5,…`` (one number per block, with or without BASE) or ``IN04=0.5,M=0,OUT00-OUT03=0``.

    Raises OptionError.
    """
    names = blocks(model)
    if not names:
        raise OptionError(f"{model.arch.title}: has no blocks that are known", "omit --block-weights")
    items = [item.strip() for item in text.split(",") if item.strip()]
    try:
        if "=" in text:
            factors = {name: factor for item in items for name, factor in _pair(item, names).items()}
        elif len(items) in (len(names), len(names) - 1):
            factors = dict(zip(names[-len(items) :], map(_number, items), strict=True))
        else:
            raise ValueError(f"{len(items)} numbers, for {len(names)} blocks ({len(names) - 1} without BASE)")
    except ValueError as error:
        raise OptionError(f"--block-weights {text!r}: {model.arch.title}: {error}", GRAMMAR) from None
    return BlockWeights(MappingProxyType(factors))


def _pair(item: str, names: tuple[str, ...]) -> dict[str, float]:
    """``IN04=0.5``, ``IN=0.5`` or ``OUT00-OUT03=0``."""
    text, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"{text!r} has no number")
    return dict.fromkeys(span(text, names), _number(value))


def span(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The blocks that a text names, of ``names`` in their order: one, all of a kind, or from one to another.

    Raises ValueError.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.rstrip("0123456789"), []).append(name)
    first, _, last = (name.strip() for name in text.partition("-"))
    last = last or first
    if unknown := {first, last} - {*names, *kinds}:
        groups = ", ".join(kind for kind, members in kinds.items() if members != [kind])
        known = f"{', '.join(names)}, and {groups} for all of a kind"
        raise ValueError(f"no block {min(unknown)!r}; the blocks are {known}")
    begin, end = names.index(kinds.get(first, [first])[0]), names.index(kinds.get(last, [last])[-1])
    if begin > end:
        raise ValueError(f"{first} comes after {last}")
    return names[begin : end + 1]


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a number") from None
    if not abs(number) <= LARGEST:
        raise ValueError(f"{text.strip()!r} is not a finite number of float32")
    return number
