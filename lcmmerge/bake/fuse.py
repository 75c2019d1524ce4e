"""A whole fuse: stage, execute, describe, commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lcmmerge.bake.outcome import Outcome, Settings
from lcmmerge.bake.report import Report, rows
from lcmmerge.merge import provenance
from lcmmerge.merge.configs import copy_configs, set_scheduler
from lcmmerge.merge.layout import PlannedFile
from lcmmerge.merge.plan import Plan
from lcmmerge.output import Output
from lcmmerge.refs import name_of
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors.digest import hashing
from lcmmerge.tensors.staging import Staging
from lcmmerge.tensors.targets import check_target

HEADROOM = 16 << 20  # headers, configs and tokenizers


def fuse(
    plan: Plan,
    *,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    force: bool = False,
    accept_loss: bool = False,
    output: Output = Output(quiet=True),  # noqa: B008 - frozen
    title: str = "fuse",
) -> Report:
    """Download what is still on the Hub, and write θ′ to the plan's target.

    Nothing is at the target until everything is. ``accept_loss``: also where rounding loses much of the change, in
    weights that are quantised already. Raises OutputError, NumericError, NoEffectError, AlreadyFusedError,
    NotFoundError, QualityError.
    """
    check_output(plan, force=force)
    plan.fetch()
    if not accept_loss:
        from lcmmerge.bake.loss import check_kept, estimated

        check_kept(plan, estimated(plan))
    with Staging(plan.target, force=force) as staging:
        folder = staging.folder
        if plan.layout == DIFFUSERS:
            folder = folder / plan.target.name
            _prepare_folder(plan, folder)
        with output.progress(title, plan.nbytes) as progress:
            outcome = _write(plan, folder, settings, progress)
        report = Report(
            str(plan.result),
            plan.nbytes,
            {str(file.path): digest for file, digest in zip(plan.files, outcome.sha256, strict=True)},
            rows(plan, outcome.layers),
            outcome.layers,
            {plan.terms[index].name: keys for index, keys in plan.unmatched.items()},
            plan.dropped,
            plan.merge.method_text,
            {name_of(plan.lender.source.path): plan.lent} if plan.lender else {},
            plan.doubts,
        )
        if plan.layout == DIFFUSERS:
            staging.commit_folder()
        else:
            staging.commit_files()
    return report


def check_output(plan: Plan, *, force: bool) -> None:
    """What is wrong with writing the plan's target. Raises OutputError, AlreadyFusedError."""
    inputs = [path for source in plan.sources.values() for path in (source.path, *source.files)]
    inputs += filter(None, (plan.configs, plan.lent_configs))
    folder = plan.layout == DIFFUSERS
    for target in dict.fromkeys([plan.target, *([] if folder else _beside(plan))]):
        check_target(target, force=force, needed=plan.nbytes + HEADROOM, inputs=inputs, folder=folder)
    if not force:
        provenance.refuse_fused(plan)


def _beside(plan: Plan) -> list[Path]:
    """The files that are not in a folder of their own: the weights, and the indices of shards."""
    return [plan.target.parent / path for file in plan.files for path in (file.path, file.index) if path]


def _prepare_folder(plan: Plan, folder: Path) -> None:
    folder.mkdir()
    components = {file.path.parts[0] for file in plan.files}
    for component in components:
        (folder / component).mkdir()
    lent = (plan.lent_configs, plan.lent) if plan.lent_configs else None
    copy_configs(plan.configs or plan.base.source.path, folder, components, plan.base, lent)
    if plan.accelerator and plan.accelerator.sampling.in_folders:
        set_scheduler(folder, plan.accelerator.sampling)


def _write(plan: Plan, folder: Path, settings: Settings, progress: Callable[[int], None]) -> Outcome:
    """Merge, and beside it hash the inputs that nobody has, beginning before torch is loaded, which takes a second."""
    wanted = plan.sources if settings.hash_base else {k: s for k, s in plan.sources.items() if k != "base"}
    known = provenance.placeholders(wanted)
    family = plan.base.arch.family
    predicts = plan.base.prediction.metadata(
        family.prediction, plan.base.source.metadata, mixed=family.mixed
    )
    with hashing(wanted) as hashes:

        def metadata(file: PlannedFile, sha256: str, *, final: bool) -> dict[str, str]:
            return provenance.metadata(plan, hashes() if final else known, sha256) | file.metadata | predicts

        from lcmmerge.bake.execute import execute

        outcome = execute(plan, folder, metadata, settings, progress)
    _write_indices(plan, folder)
    return outcome


def _write_indices(plan: Plan, folder: Path) -> None:
    """What transformers and diffusers read to find a tensor's shard."""
    for index in dict.fromkeys(file.index for file in plan.files if file.index):
        files = [file for file in plan.files if file.index == index]
        content = {
            "metadata": {"total_size": sum(file.nbytes for file in files)},
            "weight_map": dict(
                sorted((spec.name, file.path.name) for file in files for spec in file.specs)
            ),
        }
        (folder / index).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
