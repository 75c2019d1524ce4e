"""optimum's exporter, by its own API: ``python optimum_export.py unet|pipeline MODEL OUT``.

In float32, its default, and the only type it is meant to export in on a CPU. Its validation, a second run of the model
under ONNX Runtime, is left out. ``unet`` exports MODEL/unet alone.
"""

import sys
from pathlib import Path


def export_unet(model: str, out: str) -> None:
    import torch
    from diffusers import UNet2DConditionModel
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import UNetOnnxConfig

    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32)
    folder = Path(out, "unet")
    folder.mkdir(parents=True)
    export(unet, UNetOnnxConfig(unet.config, task="semantic-segmentation"), folder / "model.onnx")


def export_pipeline(model: str, out: str) -> None:
    from optimum.exporters.onnx import main_export

    main_export(model, out, task="text-to-image", dtype="fp32", do_validation=False)


if __name__ == "__main__":
    {"unet": export_unet, "pipeline": export_pipeline}[sys.argv[1]](*sys.argv[2:])
