"""What an adapter algorithm is: from its tensors to ΔW.

Notation: the base weight W is [out, in] or [out, in, kh, kw]; "flat" means ``flatten(1)``: [out, in·kh·kw].
Everything returned is float32, or float64 where the tensors given are. λ is not applied here; scale (alpha / rank) is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lcmmerge.registry import entries
from lcmmerge.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
SHARED = ""  # the grammar of what several spell alike


@dataclass(frozen=True, slots=True)
class Patch:
    """One adapter's tensors for one parameter (``weight`` or ``bias``) of one module.

    ``key`` is the module's name as the file spells it, ``roles`` maps the algorithm's vocabulary
    (``up``, ``down``, ``mid``, ``hada_w1_a``, ``diff`` …) to where each tensor is stored. ``config`` is what
    PEFT keeps outside the tensors for this module, empty for other formats. An ``optional`` patch is void,
    without error, where the base has no such parameter: (IA)³ scales a bias only if there is one.
    """

    key: str
    parameter: str
    roles: Mapping[str, TensorInfo]
    given_alpha: float | TensorInfo | None = None
    rank_stabilized: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

    @property
    def alpha(self) -> float | None:
        """A stored one is read here: a file of the Hub has hundreds, scattered, which a plan need not know."""
        return self.given_alpha.scalar() if isinstance(self.given_alpha, TensorInfo) else self.given_alpha

    @property
    def path(self) -> Path:
        return next(iter(self.roles.values())).path

    def shape(self, role: str) -> Shape:
        return self.roles[role].shape

    def is_zero(self) -> bool:
        """Whether it is a difference of zero, by its tensors where they are on this disk."""
        whole = [self.roles[role] for role in ("up", "diff", "diff_b", "w_norm", "b_norm") if role in self.roles]
        alone = self.roles.keys() <= {"up", "down", "mid", "diff", "diff_b", "w_norm", "b_norm"}
        return alone and any(info.path.is_file() and not info.read().any() for info in whole)

    @property
    def told_shape(self) -> Shape | None:
        """The shape of the parameter that it was made for, where its tensors tell."""
        match dict(self.roles):
            case {"up": up, "down": down, "mid": mid}:
                return (up.shape[0], down.shape[1], *mid.shape[2:]) if up.shape and len(down.shape) > 1 else None
            case {"up": up, "down": down}:
                return (up.shape[0], *down.shape[1:]) if up.shape and len(down.shape) > 1 else None
            case {"up_bias": whole} | {"diff": whole} | {"diff_b": whole} | {"w_norm": whole} | {"b_norm": whole}:
                return whole.shape
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Factored:
    """ΔW.flatten(1) = up @ down; ``up``: [out, r], ``down``: [r, in·kh·kw]; ``up`` holds the scale too."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Dense:
    """ΔW itself, in the parameter's shape."""

    delta: Tensor


@dataclass(frozen=True, slots=True)
class Dependent:
    """ΔW as a function of the pristine W (float32 or float64, the parameter's shape): DoRA, OFT, (IA)³, GLoRA.

    ``rows_of``: where rows of ΔW depend on no others of W, these rows of ΔW from the same rows of W.
    """

    delta_of: Callable[[Tensor], Tensor]
    rows_of: Callable[[Tensor, slice], Tensor] | None = None


Update = Factored | Dense | Dependent


@dataclass(frozen=True, slots=True)
class Example:
    """Shapes that go together: a parameter's and, by role, its tensors'; ``config`` as in Patch."""

    parameter: Shape
    tensors: Mapping[str, Shape]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One algorithm. ``claims`` decides by the roles present, ``fit`` by shapes alone, before any read.

    ``rank(patch)`` is the rank it was trained at, or None where the word means nothing. ``fit(patch, shape)``
    returns "" when the patch fits a parameter of that shape, else one phrase that says what does not.
    ``update`` gets the patch's tensors by role as stored.

    ``names``: grammar → how a tensor's name ends → its role; what stands before the ending is the module. In the
    grammar ``peft`` the adapter's name may follow the ending's first word (``lora_A.default.weight``). ``examples``:
    each combination of roles that a file may hold; the conformance tests try them. ``together``: roles that mean
    nothing without each other. ``peft_type``: of the PEFT configuration that speaks of these tensors.
    """

    title: str
    source: str
    claims: Callable[[frozenset[str]], bool]
    rank: Callable[[Patch], int | None]
    fit: Callable[[Patch, Shape], str]
    update: Callable[[Patch, Mapping[str, Tensor], Shape], Update]
    names: Mapping[str, Mapping[str, str]]
    examples: tuple[Example, ...]
    together: tuple[tuple[str, ...], ...] = ()
    peft_type: str = ""


def algorithms() -> dict[str, Adapter]:
    """Every registered algorithm by name, in name order."""
    return {name: cast(Adapter, adapter) for name, adapter in entries("lcmmerge.adapters", "ADAPTER").items()}
