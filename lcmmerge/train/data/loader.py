"""Data to batches: decoded ahead in threads, encoded where the encoders are."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, repeat
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lcmmerge.errors import FormatError, IncompatibleError, NumericError
from lcmmerge.train.batch import Batch
from lcmmerge.train.conditioning import TextEncoders
from lcmmerge.train.data.base import Data, TrainingExample, draws, grouped, number_of
from lcmmerge.train.data.encoded import Encoded, Posteriors
from lcmmerge.train.data.transforms import Seen, Transform

Item = TypeVar("Item")
Made = TypeVar("Made")
OnBad = Callable[[FormatError], None]
MOST_BAD = 100  # images in a row
AT_ONCE = 4 * 512 * 512  # pixels in one pass: a batch would take the memory of the whole training


def batches(
    data: Data[TrainingExample] | Encoded,
    encoder: TextEncoders | None = None,
    vae: AutoencoderKL | None = None,
    *,
    seed: int,
    batch_size: int,
    transform: Transform,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    drop_captions: float = 0.0,
    workers: int = 0,
    on_bad: OnBad | None = None,
) -> Iterator[Batch]:
    """This process's batches from number ``start`` on, without end. The encoders are for data that are images.

    Each is a function of ``seed`` and its number; the processes share every epoch. ``drop_captions``: the share of
    captions that ∅ takes the place of. ``workers``: threads that decode, one batch ahead; with 0 there are none.
    ``on_bad`` is told of an image that cannot be read, and the next one takes its place; without it, that is an error.

    Raises FormatError, NumericError, IncompatibleError where data were encoded for another resolution.
    """

    def numbers() -> Iterator[int]:
        for batch in count(start):
            first = (batch * processes + process) * batch_size
            yield from range(first, first + batch_size)

    if isinstance(data, Encoded):
        if (resolution := data.settings.get("resolution")) != transform.resolution:
            cause = f"{data.name}: encoded at {resolution} pixels, and {transform.resolution} are asked for"
            raise IncompatibleError(cause, "encode again, or train at the resolution of the data")
        found: Iterator[Posteriors] = map(data.stacked, grouped(data.examples(seed, numbers()), batch_size))
    else:
        assert encoder and vae, "images need encoders"
        examples = zip(data.examples(seed, numbers()), repeat(seed), numbers(), strict=False)
        seen = _without_bad(ahead(transform.see, examples, workers, batch_size), on_bad)
        found = _encoded(grouped(seen, batch_size), encoder, full_precision(vae))
    return _batches(found, grouped(numbers(), batch_size), seed, drop_captions)


def _batches(
    found: Iterator[Posteriors], numbers: Iterator[list[int]], seed: int, drop_captions: float
) -> Iterator[Batch]:
    for posteriors, places in zip(found, numbers, strict=False):
        noise = [torch.Generator().manual_seed(number_of(seed, place, "latent")) for place in places]
        kept = torch.tensor([draws(seed, place, "caption").random() >= drop_captions for place in places])
        prompt = posteriors.prompt.where(kept.to(posteriors.prompt.hidden.device), posteriors.blank)
        yield Batch(sample(posteriors.mean, posteriors.std, noise), prompt, posteriors.blank)


def _encoded(groups: Iterable[list[Seen]], encoder: TextEncoders, vae: AutoencoderKL) -> Iterator[Posteriors]:
    for seen in groups:
        mean, std = posterior(vae, torch.stack([one.pixels for one in seen]))
        sizes = torch.tensor([one.sizes for one in seen])
        prompt = encoder([one.caption for one in seen], sizes)
        yield Posteriors(mean, std, prompt, encoder.blank(len(seen), sizes))


def _without_bad(found: Iterable[Seen | FormatError], on_bad: OnBad | None) -> Iterator[Seen]:
    """The next good one in each bad one's place, so that a number stands for the same wherever reading begins."""
    bad = 0
    for seen in found:
        if isinstance(seen, Seen):
            yield from repeat(seen, bad + 1)
            bad = 0
            continue
        bad += 1
        if on_bad is None or bad == MOST_BAD:
            raise seen
        on_bad(seen)


def ahead(
    make: Callable[..., Made], calls: Iterable[tuple[object, ...]], workers: int, most: int
) -> Iterator[Made | FormatError]:
    """``make(*call)`` of each call in order, or the FormatError it raises; up to ``most`` are made ahead in threads."""

    def made(call: tuple[object, ...]) -> Made | FormatError:
        try:
            return make(*call)
        except FormatError as error:
            return error

    if not workers:
        yield from map(made, calls)
        return
    waiting: deque[Future[Made | FormatError]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for call in calls:
            waiting.append(pool.submit(made, call))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def full_precision(vae: AutoencoderKL) -> AutoencoderKL:
    """A float32 copy where the weights are fp16 and the config says that SDXL's VAE overflows in it, else itself."""
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", True)
    return copy.deepcopy(vae).float() if upcast else vae


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of ``pixels`` [B, 3, H, W], each [B, C, h, w] float32: the VAE's
    posterior (https://arxiv.org/abs/2112.10752).

    A latent z is (z − shift) · scale to the U-Net, and so are these. Raises NumericError.
    """
    shift, scale = vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]
    parts = torch.split(pixels, max(1, AT_ONCE // (pixels.shape[-1] * pixels.shape[-2])))
    found = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist for part in parts]
    mean = torch.cat([part.mean for part in found]).float()
    std = torch.cat([part.std for part in found]).float()
    if not bool(mean.isfinite().all() and std.isfinite().all()):
        raise NumericError("the VAE gives NaN or infinity", f"run it in float32, not {vae.dtype}")
    return (mean - shift) * scale, std * scale


def sample(mean: Tensor, std: Tensor, generators: list[torch.Generator]) -> Tensor:
    """z = mean + std · ε, with ε drawn on the CPU, each row from a generator of its own."""
    noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
    return mean + std * noise.to(mean.device)
