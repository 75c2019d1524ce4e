"""optimum's own pipelines over our exports, and diffusers' in torch over the same weights: how far their images differ.

    python tests/bench/optimum_clients.py [--keep FOLDER]

makes an environment of optimum's own with the pins below (it fails at import beside transformers 5), exports the
embedded model and picos with the environment that runs this, and prints a table: the greatest difference of two images
(of 1), and the standard deviation of diffusers'. Exit code 1: a difference beyond BOUND. ``--keep``: where the
environment and the exports stay, for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PINS = (
    "optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6", "huggingface_hub==0.36.2", "diffusers==0.36.0",
    "onnxruntime", "torch==2.13.0",
)  # fmt: skip
DIGITS = Path(__file__).parents[2] / "lcmmerge/zoo/digits"
BOUND = 1e-4  # of 0 … 1: fp32 kernels that add in another order
WIDTH = 16  # of a full LCM's guidance embedding


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--clients", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.clients:  # in optimum's environment
        sys.stdout.write(json.dumps(list(compare(given.clients))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return run((given.keep or Path(temporary)).resolve())


def run(folder: Path) -> int:
    exports = folder / "exports"
    if not exports.exists():
        make(folder, exports)
    command = [environment(folder / "venv"), __file__, "--clients", exports]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    rows = json.loads(found.stdout.splitlines()[-1])
    names = ("export", "by", "size", "difference", "std")
    table = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    table += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    sys.stdout.write("\n".join(table) + "\n")
    return int(not rows or any(row["difference"] > BOUND for row in rows))


def environment(venv: Path) -> Path:
    """Its Python. It sees nothing of the environment that runs this."""
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def make(folder: Path, exports: Path) -> None:
    """The embedded model with its neon style and LCM-LoRA, SDXL's pico, and SD1's as a full LCM."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from exporting import write
    from merging import merge_of
    from pico import lcm_lora, pico

    exports.mkdir(parents=True)
    cache, exact = folder / "cache", {"dtype": "fp32", "fused": True}
    neon, lcm = str(DIGITS / "neon.safetensors"), str(DIGITS / "lcm.safetensors")
    write(merge_of(str(DIGITS / "base"), exports / "digits", neon, (1.0, 1.0), lcm, accelerator="lcm"), cache, **exact)
    xl, lora = pico("sdxl").folder(folder / "sdxl", "fp32"), lcm_lora(folder / "lcm.safetensors", "sdxl")
    write(merge_of(str(xl), exports / "sdxl", None, (0.0, 1.0), str(lora), accelerator="lcm"), cache, **exact)
    write(merge_of(str(full_lcm(folder / "full")), exports / "full-lcm", None, (1.0, 0.0)), cache, **exact)


def full_lcm(folder: Path) -> Path:
    import torch
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
    from pico import TINY, UNETS, pico

    parts = dict(pico("sd1").pipeline.components)
    torch.manual_seed(5)
    parts["unet"] = UNet2DConditionModel(**(TINY | UNETS["sd1"] | {"time_cond_proj_dim": WIDTH})).eval()
    parts["scheduler"] = LCMScheduler.from_config(parts["scheduler"].config)
    parts.pop("image_encoder", None)
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def compare(exports: Path) -> Iterator[dict[str, object]]:
    """By optimum, and by diffusers in torch, from the same latents and noise."""
    import diffusers
    import numpy as np
    import torch
    from optimum import onnxruntime as optimum

    kinds = {
        "digits": ("ORTStableDiffusionPipeline", diffusers.StableDiffusionPipeline, "a seven", 1.0),
        "sdxl": ("ORTStableDiffusionXLPipeline", diffusers.StableDiffusionXLPipeline, "the thing", 1.0),
        "full-lcm": ("ORTLatentConsistencyModelPipeline", diffusers.LatentConsistencyModelPipeline, "the thing", 8.5),
    }
    for name, (by, torchs, prompt, guidance) in kinds.items():
        ours = getattr(optimum, by).from_pretrained(exports / name)
        theirs = torchs.from_pretrained(exports / name, torch_dtype=torch.float32)
        for height, width in ((64, 64), (72, 104)):
            images = []
            for pipeline in (ours, theirs):
                pipeline.set_progress_bar_config(disable=True)
                latents = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
                arguments = {"height": height, "width": width, "latents": latents, "output_type": "np"}
                generator = torch.Generator().manual_seed(2)
                images.append(
                    pipeline(
                        prompt, num_inference_steps=4, guidance_scale=guidance, generator=generator, **arguments
                    ).images
                )
            difference = float(f"{np.abs(images[0] - images[1]).max():.1e}")
            size = f"{width}×{height}"
            yield {
                "export": name,
                "by": by,
                "size": size,
                "difference": difference,
                "std": round(float(images[1].std()), 2),
            }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
