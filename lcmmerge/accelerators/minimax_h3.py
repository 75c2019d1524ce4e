"""For MiniMax-H3, a video model with sound. Its samplers are ComfyUI's, of which diffusers has none."""

from lcmmerge.accelerators.base import COMFY, Accelerator, flow
from lcmmerge.archs.minimax_h3 import ARCHITECTURE


def _turbo(name: str, file: str, steps: int, shift: float, *unverified: str, remark: str = "") -> Accelerator:
    repo = "/".join(file.split("/")[:2])
    return Accelerator(
        name,
        {"minimax_h3": f"hf://{file}.safetensors"},
        flow(steps, shift=shift),
        (f"https://huggingface.co/{repo}", "https://github.com/ModelTC/LightX2V", COMFY),
        "apache-2.0",
        duty=ARCHITECTURE.family.duty,
        remark=remark,
        unverified=("scheduler", *unverified),
    )


LIGHTX2V = "the sound has the shift 3; the file states no alpha, and LightX2V's configs say 128"
ENTRIES = (
    _turbo(
        "h3-turbo-4steps",
        "lightx2v/Minimax-h3-Turbo/minimax_h3_fl2v_turbo_4step_v1.0_768p_comfyui_bf16",
        4,
        6.0,
        "alpha",
        remark=LIGHTX2V,
    ),
    _turbo(
        "h3-turbo-8steps",
        "lightx2v/Minimax-h3-Turbo/minimax_h3_fl2v_turbo_8step_v1.0_768p_comfyui_bf16",
        8,
        6.0,
        "file",
        "alpha",
        remark=LIGHTX2V,
    ),
    _turbo(
        "h3-larryvrh",
        "larryvrh/MiniMax-H3-Turbo-Lora/minimax_h3_turbo_4step",
        4,
        12.0,
        "shift",
    ),
)
