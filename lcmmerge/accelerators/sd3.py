"""For Stable Diffusion 3 medium."""

from lcmmerge.accelerators.base import Accelerator, Span, flow


def _hyper(steps: int, guidance: float) -> Accelerator:
    return Accelerator(
        f"hyper-sd3-{steps}steps",
        {"sd3": f"hf://ByteDance/Hyper-SD/Hyper-SD3-{steps}steps-CFG-lora.safetensors"},
        flow(steps, guidance),
        ("https://arxiv.org/abs/2404.13686", "https://huggingface.co/ByteDance/Hyper-SD"),
        strength=Span.only(0.125),
        unverified=("licence",),
    )


def _pcm(steps: int, shift: int) -> Accelerator:
    return Accelerator(
        f"pcm-sd3-{steps}steps-s{shift}",
        {"sd3": f"hf://wangfuyun/PCM_Weights/sd3/pcm_deterministic_{steps}step_shift{shift}.safetensors"},
        flow(steps, 1, shift=shift),
        ("https://arxiv.org/abs/2405.18407", "https://huggingface.co/wangfuyun/PCM_Weights"),
        licence=None,
        unverified=("file's folder", "guidance"),
    )


ENTRIES = (
    *(_hyper(steps, guidance) for steps, guidance in ((4, 3), (8, 5), (16, 7))),
    *(_pcm(steps, shift) for steps, shift in ((2, 1), (4, 1), (4, 3))),
)
