"""What an objective is: figures of a cell's samples against the teacher's, drawn from the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lcmmerge.errors import OptionError
from lcmmerge.search.statistics import Statistic

AT_ONCE = 8  # images decoded, and looked at


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Images of one cell, as an objective gets them.

    ``latents``: [n, C, h, w] float32, as the VAE gets them before its scaling; ``prompts``: n texts.

    ``decode``: latents → images, [·, 3, H, W] uint8, on the device where networks are to look at them.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    decode: Callable[[Tensor], Tensor] | None = None
    _seen: dict[Hashable, Tensor] = field(default_factory=dict)

    def images(self) -> Iterator[Tensor]:
        """A few at once, decoded anew each time: an objective that asks for none pays for none."""
        assert self.decode
        yield from map(self.decode, torch.split(self.latents, AT_ONCE))

    def seen(self, key: Hashable, look: Callable[[Iterator[Tensor]], Iterator[Tensor]]) -> Tensor:
        """What ``look`` makes of the images: a row for each, [n, …] on the CPU in float64; ``key`` is asked once."""
        if key not in self._seen:
            with torch.no_grad():
                self._seen[key] = torch.cat([found.double().cpu() for found in look(self.images())])
        return self._seen[key]

    def of(self, numbers: Sequence[int]) -> Samples:
        """Those samples alone."""
        rows = list(numbers)
        if rows == list(range(len(self.prompts))):
            return self
        prompts = tuple(self.prompts[number] for number in rows)
        return Samples(self.latents[rows], prompts, self.decode, {key: one[rows] for key, one in self._seen.items()})


Measure = Callable[..., Mapping[str, Statistic]]  # (a cell's samples, the teacher's) → its figures by name


@dataclass(frozen=True, slots=True)
class Objective:
    """The mean of its figures, each z-scored over a study's cells; ``maximise`` where higher is better.

    ``cost``: in words, what it takes beside the samples. ``source``: where its equation is from. ``paired``: figures
    of samples that share their noise, for which two draws of the teacher give no floor. ``weights``: of the network
    that it looks with, which ``measure`` gets as ``weights``; empty where it needs none. ``extra``: of ``extras``.
    """

    title: str
    measure: Measure
    cost: str
    source: str
    maximise: bool = False
    paired: frozenset[str] = frozenset()
    weights: str = ""
    extra: str = ""

    def looking_with(self, weights: str) -> Objective:
        """With another network of its kind. Raises OptionError where there is none."""
        if not self.weights:
            raise OptionError(f"the {self.title} needs no weights", "omit what follows its name")
        return replace(self, weights=weights, measure=partial(self.measure, weights=weights))


def is_program(weights: str) -> bool:
    """Whether a network is a TorchScript, which is not weights alone: it is run as it stands."""
    return weights.endswith(".pt")
