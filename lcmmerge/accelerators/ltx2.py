"""For LTX-2 and 2.3: what is distilled less what is not, of rank 384."""

from lcmmerge.accelerators.base import COMFY, Accelerator, Span, flow
from lcmmerge.archs.ltx2 import ARCHITECTURE

SIGMAS = (1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)


def _distilled(version: str, size: str) -> Accelerator:
    repo = f"Lightricks/LTX-{version}"
    return Accelerator(
        f"ltx{version.replace('.', '')}-distilled",
        {"ltx2": f"hf://{repo}/ltx-{version}-{size}-distilled-lora-384.safetensors"},
        flow(8, sigmas=SIGMAS),
        (f"https://huggingface.co/{repo}", "https://huggingface.co/docs/diffusers/api/pipelines/ltx2", COMFY),
        "ltx-2-community-license-agreement",
        duty=ARCHITECTURE.family.duty,
        remark="0.5 is ComfyUI's; the second stage, at twice the size, has the last three sigmas",
        base=f"LTX-{version} {size} dev",
        strength=Span(0.5, 0.5, 1),
        unverified=("largest strength",),
    )


ENTRIES = _distilled("2", "19b"), _distilled("2.3", "22b")
