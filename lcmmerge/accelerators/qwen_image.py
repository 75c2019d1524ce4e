"""For Qwen-Image, and its 2512, Edit 2509 and Edit 2511."""

from lcmmerge.accelerators.base import COMFY, Accelerator, flow

SHIFT = "ComfyUI's graphs have the shift 3.1"
WULI = "Wuli-art/Qwen-Image-2512-Turbo-LoRA-2-Steps"


def _lightning(model: str, base: str, repo: str, file: str) -> tuple[Accelerator, ...]:
    """``repo``: and the folder in it; ``file``: of 4 or 8 steps."""
    owner, name = repo.split("/")[:2]
    return tuple(
        Accelerator(
            f"{model}-{steps}steps",
            {"qwen_image": f"hf://{repo}/{file.format(steps)}.safetensors"},
            flow(steps, shift=3),
            (f"https://huggingface.co/{owner}/{name}", "https://github.com/ModelTC/Qwen-Image-Lightning", COMFY),
            "apache-2.0",
            remark=SHIFT,
            base=base,
        )
        for steps in (4, 8)
    )


ENTRIES = (
    *_lightning(
        "qwen",
        "Qwen-Image",
        "lightx2v/Qwen-Image-Lightning",
        "Qwen-Image-Lightning-{}steps-V2.0",
    ),
    *_lightning(
        "qwen-2512",
        "Qwen-Image-2512",
        "lightx2v/Qwen-Image-2512-Lightning",
        "Qwen-Image-2512-Lightning-{}steps-V1.0-bf16",
    ),
    *_lightning(
        "qwen-2509",
        "Qwen-Image-Edit-2509",
        "lightx2v/Qwen-Image-Lightning/Qwen-Image-Edit-2509",
        "Qwen-Image-Edit-2509-Lightning-{}steps-V1.0-bf16",
    ),
    *_lightning(
        "qwen-2511",
        "Qwen-Image-Edit-2511",
        "lightx2v/Qwen-Image-Edit-2511-Lightning",
        "Qwen-Image-Edit-2511-Lightning-{}steps-V1.0-bf16",
    ),
    Accelerator(
        "wuli-turbo-2steps",
        {"qwen_image": f"hf://{WULI}/Wuli-Qwen-Image-2512-Turbo-LoRA-2steps-V1.0-bf16.safetensors"},
        flow(2),
        (f"https://huggingface.co/{WULI}", COMFY),
        None,
        base="Qwen-Image-2512",
        unverified=("shift", "licence"),
    ),
)
