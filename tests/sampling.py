"""Pictures for tests: picos' pipelines through the package, and through diffusers alone as the oracle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from lcmmerge.archs import identify
from lcmmerge.draw import load, presets
from lcmmerge.draw.draw import Drawn, DrawOutputs, draw
from lcmmerge.draw.jobs import Job, jobs_of
from lcmmerge.draw.presets import Preset
from lcmmerge.tensors import open_source

CPU = torch.device("cpu")
BOTH = DrawOutputs(latents=True)


def pipeline(source: Path, configs: Path | None = None, dtype: torch.dtype = torch.float32) -> load.Pipeline:
    model = identify(open_source(source))
    return load.load_pipeline(model, configs or source, dtype, CPU)


def preset(folder: Path, **asked: Any) -> Preset:
    return presets.choose(identify(open_source(folder)), folder, **{"steps": 2, **asked})


def images(drawing: Any) -> np.ndarray:
    """uint8 [images, height, width, 3]."""
    return np.stack([np.asarray(drawn.image) for drawn in drawing])


def one(prompt: str = "the thing", negative: str = "", seed: int = 3, size: tuple[int, int] = (64, 64)) -> Job:
    return Job(prompt, negative, seed, *size)


def several(*prompts: str, count: int = 1) -> list[Job]:
    return jobs_of(prompts, (64, 64), count=count)


def drawn(pipe: load.Pipeline, jobs: list[Job], chosen: Preset, batch: int = 1, **more: Any) -> list[Drawn]:
    return list(draw(pipe, jobs, chosen, batch, wanted=BOTH, **more))


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Within one of 255 levels: with equal weights a forward pass still differs in float32's last bit."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


@cache
def _oracle(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_diffusers(folder: Path, job: Job, scheduler: Any = None, **call: Any) -> np.ndarray:
    """The image as diffusers' own loading and pipeline give it, uint8 [1, height, width, 3].

    ``scheduler`` makes one of the config of the folder's own.
    """
    pipe = _oracle(folder)
    own = pipe.scheduler
    pipe.scheduler = scheduler(own.config) if scheduler else own
    result = pipe(
        job.prompt, negative_prompt=job.negative or None, width=job.width, height=job.height,
        generator=torch.Generator().manual_seed(job.seed), **call,
    )  # fmt: skip
    pipe.scheduler = own
    return np.stack([np.asarray(image) for image in result.images])
