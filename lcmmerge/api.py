"""The Python API: a merge, and what can be done with it, named as the commands are.

It prints nothing. What a command would warn of is a Python warning (``UserWarning``), what a command would refuse is an
``lcmmerge.LcmMergeError`` with the same message, and results are plain data with ``as_dict()``. References are as on
the command line: a path, ``hf://owner/repo[@revision]/file``, or ``zoo:…`` for what ships with lcmmerge. torch is
imported when the first weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from lcmmerge.draw import quiet_libraries
from lcmmerge.extras import check_installed
from lcmmerge.merge import spec
from lcmmerge.output import Warnings

if TYPE_CHECKING:
    from lcmmerge.bake.report import Report
    from lcmmerge.export.bundle import Exported
    from lcmmerge.inspection import Inspection
    from lcmmerge.merge.plan import Plan
    from lcmmerge.search.result import Result

Reference = str | os.PathLike[str]
Size = tuple[int, int]  # width, height in pixels


class DrawOptions(TypedDict, total=False):
    """How images are drawn. ``count``: per prompt. ``size``: in pixels. ``seed``: of each prompt's first image."""

    steps: int
    count: int
    seed: int
    size: Size
    batch: int
    guidance: float
    dtype: str
    device: str


class Merge(spec.Merge):
    """θ′ = θ_base + Σ λτ: a base, and named task vectors with their λs.

    ``terms``: name → (reference, λ), or a Term with block factors, or λ alone for an accelerator of
    ``lcmmerge accelerators``, whose file for the base's architecture it then is; None for its usual λ. In place of a
    reference one for each expert: ``{"transformer": "high.safetensors", "transformer_2": ("low.safetensors", 0.5)}``.

    >>> merge = lcmmerge.Merge("base.safetensors", {"style": ("style.safetensors", 0.8), "hyper-8steps": 1.0})
    >>> merge.command()
    'lcmmerge fuse base.safetensors style.safetensors --lambda 0.8 1.0 --accelerator hyper-8steps'
    """

    __slots__ = ()

    def plan(self) -> Plan:
        """What ``write`` would do, from headers alone: terms, coverage, files, sizes.

        Raises NotFoundError, FormatError, and IncompatibleError for a term that finds no home.

        >>> from lcmmerge import Merge, Source, Term
        >>> lcm = Term("lcm", Source("zoo:digits/lcm.safetensors"), accelerator="lcm")
        >>> planned = Merge("zoo:digits/base", {"style": ("zoo:digits/neon.safetensors", 0.8), "lcm": lcm}).plan()
        >>> [(term.name, term.strength) for term in planned.terms], planned.base.arch.title
        ([('style', 0.8), ('lcm', 1.0)], 'Stable Diffusion 1')
        """
        from lcmmerge.merge.plan import plan

        return plan(self)

    def write(
        self,
        path: Reference | None = None,
        *,
        layout: Literal["single-file", "diffusers"] | None = None,
        dtype: str | None = None,
        encoding: str | None = None,
        like: Reference | None = None,
        max_shard_size: int | None = None,
        drop_ema: bool = False,
        mend_position_ids: bool = False,
        rounding_seed: int | None = None,
        error_aware: bool = False,
        accept_loss: bool = False,
        force: bool = False,
        device: str = "cpu",
        threads: int = 0,
        hash_base: bool = False,
    ) -> Report:
        """Write the merge as one standalone checkpoint, as ``lcmmerge fuse`` does.

        ``path``: None names it after the inputs, in the working folder. ``layout``, ``dtype``: the base's own where
        none is given. ``encoding``: how numbers are stored; a dtype is one way. ``like``: a quantised file of the same
        base, in whose encodings tensors are stored. ``max_shard_size``: split files above it, in bytes.
        ``mend_position_ids``: write those of text encoders as 0, 1, 2 … ``rounding_seed``: of stochastic rounding, None
        rounds to nearest. ``error_aware``: rounds by the scales that lose least. ``accept_loss``: also where a
        quantised base would keep less than 90 % of the change. ``threads``: 0 is one per core, at most four.
        ``hash_base``: record the base's sha256 too. The report has of each term ‖Δ‖/‖θ‖ and what rounding kept, and the
        sha256 of each file. Raises what ``plan`` does, OutputError, NumericError, AlreadyFusedError, QualityError.

        >>> from lcmmerge import Merge, Source, Term
        >>> lcm = Term("lcm", Source("zoo:digits/lcm.safetensors"), accelerator="lcm")
        >>> merge = Merge("zoo:digits/base", {"style": ("zoo:digits/neon.safetensors", 0.8), "lcm": lcm})
        >>> [(row.term, row.strength) for row in merge.write("neon-lcm").rows]
        [('style', 0.8), ('lcm', 1.0)]
        """
        from lcmmerge.bake.fuse import fuse
        from lcmmerge.bake.outcome import Settings
        from lcmmerge.tensors.targets import target_of

        place = None if path is None else target_of(path)
        stored = spec.stored_as(dtype, encoding)
        output = spec.Written(
            place, layout, stored, max_shard_size, drop_ema, rounding_seed, mend_position_ids,
            None if like is None else spec.Source.of(like), error_aware,
        )  # fmt: skip
        planned = replace(self, output=output).plan()
        _warn((*planned.doubts, *planned.scheduler_doubts, *planned.obligations))
        return fuse(planned, settings=Settings(threads, device, hash_base), force=force, accept_loss=accept_loss)

    def search(
        self,
        prompts: Sequence[str],
        folder: Reference,
        *,
        grid: Mapping[str, Sequence[float]] | None = None,
        optimize: int = 0,
        objective: str = "teacher",
        force: bool = False,
        **drawing: Unpack[DrawOptions],
    ) -> Result:
        """Draw every cell of a grid of λs (term → λs) and choose by measuring; ``folder``: the study's.

        The same call goes on with a study where it ended. ``optimize``: how many cells Optuna adds. ``Result.scored``
        has the rows, the best cell and the verdict against what a merge must beat; ``Result.merge`` is the merge at the
        λs found, ``Result.command`` the command that bakes it. Needs ``lcmmerge[search]``. Raises what ``plan`` does,
        and LcmMergeError.

        >>> from lcmmerge import Merge, Source, Term
        >>> lcm = Term("lcm", Source("zoo:digits/lcm.safetensors"), accelerator="lcm")
        >>> merge = Merge("zoo:digits/base", {"style": ("zoo:digits/neon.safetensors", 1.0), "lcm": lcm})
        >>> found = merge.search(["a one", "a two"], "study", grid={"style": [0.6, 1.0]}, steps=1, guidance=2.5)
        >>> [term.strength for term in found.merge.terms] in ([0.6, 1.0], [1.0, 1.0])
        True
        """
        check_installed("search")
        quiet_libraries()
        from lcmmerge.search.request import SearchRequest
        from lcmmerge.search.run import search

        axes = {term: tuple(values) for term, values in (grid or {}).items()}
        asked = SearchRequest(
            self, Path(folder), tuple(prompts), axes, optimize, objective=objective, force=force, **drawing
        )
        return search(asked, Warnings(quiet=True))

    def export(
        self,
        folder: Reference,
        *,
        to: str = "onnx",
        dtype: Literal["fp32", "fp16", "bf16"] = "fp16",
        static: Sequence[Size] = (),
        fused: bool = True,
        parity: bool = False,
        force: bool = False,
    ) -> Exported:
        """Write ONNX graphs over the merge's weights, as one folder.

        ``to``: ``tensorrt`` adds profiles, also ``static`` ones. ``fused``: also graphs with Attention nodes.
        ``parity``: compare every graph with its torch module. Needs ``lcmmerge[export]``. Raises what ``write`` does.

        >>> found = lcmmerge.Merge("zoo:digits/base").export("graphs", fused=False)
        >>> sorted(path.parent.name for path in found.folder.glob("*/model.onnx"))
        ['text_encoder', 'unet', 'vae_decoder', 'vae_encoder']
        """
        check_installed("export")
        quiet_libraries()
        from lcmmerge.export.bundle import export
        from lcmmerge.export.request import ExportRequest, prepare

        merge = self.to(Path(folder))
        asked = ExportRequest(merge, to, dtype, statics=tuple(static), fused=fused, parity=parity, force=force)
        prepared = prepare(asked)
        _warn(prepared.plan.doubts)
        return export(prepared, Warnings(quiet=True))

    def draw(
        self,
        prompts: Sequence[str],
        folder: Reference,
        *,
        negative: str = "",
        scheduler: str | None = None,
        force: bool = False,
        **drawing: Unpack[DrawOptions],
    ) -> tuple[Path, ...]:
        """Draw images with the merge, which is not written, into ``folder``; the PNG files.

        The scheduler, steps and guidance are the accelerator's where none are given. Needs ``lcmmerge[draw]``. Raises
        what ``plan`` does, OutputError, AlreadyFusedError.

        >>> from lcmmerge import Merge, Source, Term
        >>> lcm = Term("lcm", Source("zoo:digits/lcm.safetensors"), accelerator="lcm")
        >>> merge = Merge("zoo:digits/base", {"style": ("zoo:digits/neon.safetensors", 0.8), "lcm": lcm})
        >>> [path.name for path in merge.draw(["a three"], "images", seed=7)]
        ['0000-7.png']
        """
        check_installed("draw")
        quiet_libraries()
        from lcmmerge.draw import drawable, live, load, png, presets
        from lcmmerge.draw.draw import draw
        from lcmmerge.draw.jobs import jobs_of

        planned = live.plan_live(self, force=force)
        _warn(planned.doubts)
        configs = drawable.configs_of(planned.base, self.config_from)
        preset = presets.choose(
            planned.base,
            configs,
            accelerator=planned.accelerator.name if planned.accelerator else None,
            scheduler=scheduler,
            steps=drawing.get("steps"),
            guidance=drawing.get("guidance"),
        )
        size = drawing.get("size") or drawable.native_size(configs)
        jobs = jobs_of(
            prompts, size, negative=negative, seed=drawing.get("seed", 0), count=drawing.get("count", 1)
        )
        names, place = png.names_of(jobs), Path(folder)
        png.check_folder(place, names, force=force)
        device, dtype = load.pick_device(drawing.get("device"), drawing.get("dtype"))
        origin = png.Origin.of(planned.base, planned, dtype, device)
        pipeline = live.load_live(planned, configs, dtype, device)
        for name, drawn in zip(names, draw(pipeline, jobs, preset, drawing.get("batch", 1)), strict=True):
            png.save(drawn, place / name, preset, origin)
        return tuple(place / name for name in names)


def inspect(reference: Reference, *, variant: str | None = None) -> Inspection:
    """What a checkpoint or an adapter is, from its headers alone, also on the Hub.

    Raises NotFoundError, FormatError.

    >>> lcmmerge.inspect("zoo:digits/neon.safetensors").as_dict()["kind"]
    'adapter'
    """
    from lcmmerge.inspection import inspect as look
    from lcmmerge.tensors.remote import open_reference

    return look(open_reference(os.fspath(reference), variant=variant, scalars=True))


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        Warnings().warn(doubt)
