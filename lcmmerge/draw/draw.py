"""Jobs → images, in batches; a job's image depends on its own seed, and not on what else is in its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from lcmmerge.draw.encode import Encoder
from lcmmerge.draw.jobs import Job
from lcmmerge.draw.load import Pipeline
from lcmmerge.draw.presets import Preset, is_guided
from lcmmerge.errors import FormatError, LcmMergeError, NumericError
from lcmmerge.merge.configs import CURE


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image, and the latents that it was decoded from.

    ``latents``: float32 [channels, height / 8, width / 8] on the CPU, as the VAE gets them before its scaling.
    """

    job: Job
    image: Image | None
    latents: Tensor | None


@dataclass(frozen=True, slots=True)
class DrawOutputs:
    """Without ``images`` the VAE is not asked."""

    images: bool = True
    latents: bool = False


def draw(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    preset: Preset,
    batch: int = 1,
    *,
    wanted: DrawOutputs = DrawOutputs(),
    encoder: Encoder | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Iterator[Drawn]:
    """Draw the jobs in order, at most ``batch`` of one size at once.

    Noise comes from one generator on the CPU per job, so that it is the same on every device. ``encoder``: one that
    knows prompts already; ``progress`` is told steps × jobs done. Where memory ends, the batch is halved for good.
    Raises NumericError where an image is NaN, FormatError where diffusers fails, LcmMergeError where one alone does not
    fit into memory.
    """
    encoder = encoder or Encoder(pipeline, say)
    done = 0
    while done < len(jobs):
        group = _batch(jobs[done:], batch)
        drawn = _Batch(pipeline, preset, group, progress).draw(encoder, wanted)
        if drawn is None:
            torch.cuda.empty_cache()
            batch = len(group) // 2
            if not batch:
                cure = "give a smaller --size, or --dtype fp16 or bf16"
                raise LcmMergeError(f"{group[0].width}×{group[0].height}: one image does not fit into memory", cure)
            say(f"{len(group)} images at once do not fit into memory: going on with {batch}")
            continue
        yield from drawn
        done += len(group)


def _batch(jobs: Sequence[Job], at_most: int) -> Sequence[Job]:
    """The first jobs, as far as they are of one size."""
    for number, job in enumerate(jobs[:at_most]):
        if job.size != jobs[0].size:
            return jobs[:number]
    return jobs[:at_most]


class _Batch:
    """One call of the pipeline."""

    def __init__(
        self, pipeline: Pipeline, preset: Preset, jobs: Sequence[Job], progress: Callable[[int], None]
    ) -> None:
        self.pipeline, self.preset, self.jobs, self.progress = pipeline, preset, jobs, progress
        self.latents = torch.empty(0)
        self.reported = 0

    def draw(self, encoder: Encoder, wanted: DrawOutputs) -> list[Drawn] | None:
        """None where memory did not suffice."""
        own = self.pipeline.scheduler
        try:
            self.pipeline.scheduler = self.preset.build(own.config)
            pixels = self._call(encoder, wanted)
        except (LcmMergeError, OSError):
            raise
        except Exception as error:  # diffusers computes with a model's configs, and checks little of them
            self.progress(-self.reported)
            if not is_out_of_memory(error):
                raise _undrawable(error) from error
            self.pipeline.vae.to(self.pipeline.unet.dtype)  # SDXL's decodes in float32, and was left so
            return None
        finally:
            self.pipeline.scheduler = own
        if not (bool(self.latents.isfinite().all()) and bool(np.isfinite(pixels).all())):
            raise NumericError(f"{self.jobs[0].prompt!r}: the image is NaN or Inf", "try --dtype bf16 or fp32")
        nothing = [None] * len(self.jobs)
        images = self.pipeline.image_processor.numpy_to_pil(pixels) if wanted.images else nothing
        latents = self.latents.float().cpu() if wanted.latents else nothing
        return [Drawn(*parts) for parts in zip(self.jobs, images, latents, strict=True)]

    def _call(self, encoder: Encoder, wanted: DrawOutputs) -> np.ndarray[Any, Any]:
        """Pixels in [0, 1], [jobs, height, width, 3]; none where no images are wanted."""
        guided = is_guided(self.preset.guidance, self.pipeline.unet)
        width, height = self.jobs[0].size
        result = self.pipeline(
            **encoder.arguments(self.jobs, guided=guided),
            width=width,
            height=height,
            num_inference_steps=self.preset.steps,
            guidance_scale=max(self.preset.guidance, 1.0),  # 0 and 1 both mean off, also to a full LCM's w = g − 1
            generator=[torch.Generator().manual_seed(job.seed) for job in self.jobs],
            output_type="np" if wanted.images else "latent",
            callback_on_step_end=self._after_step,
            callback_on_step_end_tensor_inputs=["latents"],
            **self.preset.arguments,
        )
        return result.images if wanted.images else np.empty(0)

    def _after_step(self, pipeline: Pipeline, step: int, timestep: int, found: dict[str, Tensor]) -> dict[str, Tensor]:
        self.latents = found["latents"]
        self.reported += len(self.jobs)
        self.progress(len(self.jobs))
        return found


def _undrawable(error: Exception) -> FormatError:
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return FormatError(f"diffusers cannot draw with this model ({what})", f"where its configs are damaged, {CURE}")


def is_out_of_memory(error: Exception) -> bool:
    """torch's CPU allocator has no error of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
