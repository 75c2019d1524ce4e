"""What a training is asked for, as plain data, and what follows from it and the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from lcmmerge.accelerators import OFFICIAL, Sampling, Span
from lcmmerge.archs import Architecture, Model
from lcmmerge.draw.presets import Preset, baseline
from lcmmerge.errors import IncompatibleError, OptionError, OutputError
from lcmmerge.merge.spec import LCM, STYLE
from lcmmerge.refs.weights import SAFETENSORS, has_suffix
from lcmmerge.tensors import DTYPES, DType
from lcmmerge.tensors.targets import joined, safetensors_name
from lcmmerge.train.consistency import Grid
from lcmmerge.train.data import Options
from lcmmerge.train.data.transforms import Transform
from lcmmerge.train.objectives import TrainingObjective
from lcmmerge.train.objectives.diffusion import Diffusion
from lcmmerge.train.objectives.lcd import LatentConsistencyDistillation
from lcmmerge.train.objectives.lcf import LatentConsistencyFineTuning
from lcmmerge.train.settings import TrainingSettings

LCD, LCF, DIFFUSION = "lcd", "lcf", "diffusion"
MU = 0.95  # of the scripts too; the LCM paper's is 0.999943
HELD_OUT, ENOUGH = 8, 80  # so many examples are held out, where there are so many


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is to be trained, on what, and how.

    ``kind``: the objective. ``full``: the whole U-Net, else a LoRA of ``rank`` and ``alpha`` (None: the rank).

    ``w``: the range of guidance scales, None for the architecture's. ``skip``: k, in timesteps. ``mu``: EMA rate of a
    whole student's target. ``resolution``: None for what the U-Net is made for. ``validate``: how many examples are
    held out, None for 8 of 80 or more. ``cfg``: the guidance scale of plain diffusion's samples, None for what is usual
    for the architecture. ``dtype``: of the product. ``prediction``: of the base, as ``--prediction`` names
    it. ``work``: None for ``<output>.training``.
    """

    base: str
    data: str
    output: Path
    kind: str = LCD
    settings: TrainingSettings = TrainingSettings()  # noqa: RUF009 - frozen
    rank: int = 64
    alpha: float | None = None
    full: bool = False
    mu: float = MU
    w: tuple[float, float] | None = None
    distance: str = "huber"
    skip: int = 20
    snr_gamma: float | None = None
    options: Options = Options()  # noqa: RUF009 - frozen
    resolution: int | None = None
    crop: str = "centre"
    flip: bool = False
    drop_captions: float = 0.0
    skip_bad: bool = False
    workers: int = 0
    validate: int | None = None
    cfg: float | None = None
    dtype: DType = DTYPES["F16"]
    device: str | None = None
    variant: str | None = None
    config_from: str | None = None
    prediction: str | None = None
    work: Path | None = None
    resume: bool = False
    force: bool = False

    @property
    def command(self) -> str:
        return "lcmmerge train-style" if self.kind == DIFFUSION else "lcmmerge distill"

    @property
    def target(self) -> Path:
        """Raises OutputError where a whole pipeline would have the name of a file."""
        if not self.full:
            return safetensors_name(self.output, joined(self.base, STYLE if self.kind == DIFFUSION else LCM))
        if has_suffix(self.output.name, SAFETENSORS):
            raise OutputError(f"{self.output}: a whole pipeline is a folder, not a file", "choose another name with -o")
        return self.output

    @property
    def folder(self) -> Path:
        """The work folder: checkpoints, logs, sheets."""
        target = self.target
        return self.work or target.with_name(f"{target.name if self.full else target.stem}.training")

    @property
    def scale(self) -> float:
        """alpha, with which a LoRA's product is weighed, over the rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    def guidance_range(self, arch: Architecture) -> tuple[float, float]:
        return self.w or arch.family.trained_guidance

    def objective(self, arch: Architecture, timesteps: int) -> TrainingObjective:
        """Raises OptionError for what makes no sense."""
        if self.kind == DIFFUSION:
            return Diffusion(self.snr_gamma)
        low, high = self.guidance_range(arch)
        if not (isfinite(low) and isfinite(high) and low <= high):
            raise OptionError(f"--w {low:g} {high:g}: is not a range", "such as --w 5 15")
        if self.skip < 1 or timesteps % self.skip:
            raise OptionError(f"--skip {self.skip}: does not divide {timesteps} timesteps", "such as --skip 20")
        grid = Grid(timesteps // self.skip, timesteps)
        objective = LatentConsistencyDistillation if self.kind == LCD else LatentConsistencyFineTuning
        return objective(low, high, self.distance, grid)

    def transform(self, made_for: int, factor: int) -> Transform:
        """``made_for``: the U-Net's ``sample_size``; ``factor``: pixels per latent and side. Raises OptionError."""
        resolution = self.resolution or made_for * factor
        if resolution < factor or resolution % factor:
            raise OptionError(f"--resolution {resolution}: is not a multiple of {factor}", "such as 512")
        return Transform(resolution, self.crop, self.flip)

    def guidance(self, model: Model) -> float:
        """With which the teacher is drawn, and that a student with a guidance embedding is told."""
        if self.kind == DIFFUSION:
            return self._many_steps(model).guidance
        return 1 + sum(self.guidance_range(model.arch)) / 2

    def sampling(self, model: Model, original_steps: int, *, guided: bool) -> Sampling:
        """How to draw with the product; ``guided``: whether its U-Net has a guidance embedding."""
        if self.kind == DIFFUSION:
            preset = self._many_steps(model)
            return Sampling(preset.scheduler, Span.only(preset.steps), Span.only(preset.guidance), preset.settings)
        low, high = self.guidance_range(model.arch)
        told = Span(self.guidance(model), 1 + low, 1 + high)
        usual = OFFICIAL.sampling
        settings = {} if original_steps == 50 else {"original_inference_steps": original_steps}
        return Sampling(usual.scheduler, usual.steps, told if guided else usual.guidance, settings)

    def _many_steps(self, model: Model) -> Preset:
        usual = baseline("dpm-solver++", model)
        return usual if self.cfg is None else replace(usual, guidance=self.cfg)


def refuse(job: TrainingJob, model: Model) -> None:
    """What cannot be trained so. Raises IncompatibleError, OptionError."""
    path = model.source.path
    if job.kind == LCD and any("cond_proj" in name for name in model.leftovers):
        raise IncompatibleError(
            f"{path}: is a latent consistency model already, and no teacher", "tune it on your data with --finetune"
        )
    if not (isfinite(job.scale) and job.scale > 0):
        raise OptionError(f"--alpha {job.scale:g}: must be above 0", "omit it: it is then the rank")
