"""For Qwen-Image-2.1. Its repositories are named, and not the files in them; ComfyUI's turbo is a whole model."""

from lcmmerge.accelerators.base import COMFY, Accelerator, Span, flow
from lcmmerge.archs.qwen_image21 import ARCHITECTURE


def _of(name: str, repo: str, steps: Span, *unverified: str) -> Accelerator:
    return Accelerator(
        name,
        {"qwen_image21": f"hf://{repo}"},
        flow(steps),
        (f"https://huggingface.co/{repo}", COMFY),
        "qwen-research",
        duty=ARCHITECTURE.family.duty,
        base="Qwen-Image-2.1",
        unverified=("file", "shift", *unverified),
    )


ENTRIES = (
    _of("qwen-21-lightning", "lightx2v/Qwen-Image-2.1-Lightning", Span(4, 4, 8), "steps"),
    _of("qwen-21-pruna", "PrunaAI/P-Q-Image-2.1", Span(8, 5, 8), "guidance"),
)
