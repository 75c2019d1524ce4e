"""Graphs of an output, as ``lcmmerge export`` writes them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lcmmerge.export.targets import targets
from lcmmerge.merge.spec import Merge, Written
from lcmmerge.recipe.steps.base import Step, StepWork
from lcmmerge.recipe.values import Size, pixels

Half = Literal["fp16", "bf16", "fp32"]


class Export(Step):
    """ONNX graphs of each output, over its weights: one folder for diffusers, ONNX Runtime and TensorRT."""

    target: ClassVar = "export/{}"
    order: ClassVar = 4

    to: Literal[tuple(targets())] = Field("onnx", description="What else is written.")  # type: ignore[valid-type]
    dtype: Half = Field("fp16", description="Of weights and graphs.")
    vae_dtype: Half | None = Field(None, description="Default: as `dtype`; fp32 where a VAE overflows fp16.")
    static: list[Size] = Field(
        [], description="Sizes to build engines for, such as 768x512; the native one always is."
    )
    fused: bool = Field(True, description="Also graphs with Attention nodes, opset 23.")
    parity: bool = Field(True, description="Compare every graph with its torch module, at six sizes.")

    def extras(self) -> tuple[str]:
        return ("export",)

    def make(self, work: StepWork) -> dict[str, Any]:
        """Each graph's error. Raises RecipeError of a size that no model has, and what `export.bundle.export` does."""
        from lcmmerge.draw import quiet_libraries
        from lcmmerge.export.bundle import export
        from lcmmerge.export.parity import figures
        from lcmmerge.export.request import ExportRequest, prepare

        quiet_libraries()
        statics = tuple(pixels(size, "export.static", "768x512") for size in self.static)
        configs = work.build.inputs.get("config_from")
        merge = Merge(
            work.build.plan.result, output=Written(work.content), config_from=configs.path if configs else None,
            prediction=work.build.plan.merge.prediction,
        )
        fields = self.model_dump(exclude={"static"})
        exported = export(prepare(ExportRequest(merge, **fields, statics=statics)), work.output)
        return {"parity": figures(exported.manifest.parity)}


STEP = Export
