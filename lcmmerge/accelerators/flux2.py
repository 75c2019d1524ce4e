"""For FLUX.2-dev; klein has none: its distilled checkpoints less its bases are deltas."""

from lcmmerge.accelerators.base import COMFY, NON_COMMERCIAL, Accelerator, flow

SIGMAS = (1, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031)


def _turbo(name: str, file: str, guidance: float, *sources: str, remark: str = "") -> Accelerator:
    return Accelerator(
        name,
        {"flux2": file},
        flow(8, guidance, sigmas=SIGMAS, embedded=True),
        sources,
        "flux-dev-non-commercial-license",
        NON_COMMERCIAL,
        remark=remark,
        base="FLUX.2-dev",
        unverified=("guidance",),
    )


ENTRIES = (
    _turbo(
        "flux2-turbo",
        "hf://fal/FLUX.2-dev-Turbo/flux.2-turbo-lora.safetensors",
        2.5,
        "https://huggingface.co/fal/FLUX.2-dev-Turbo",
    ),
    _turbo(
        "flux2-turbo-comfy",
        "hf://Comfy-Org/flux2-dev/split_files/loras/Flux2TurboComfyv2.safetensors",
        4,
        COMFY,
        "https://huggingface.co/ByteZSzn/Flux.2-Turbo-ComfyUI",
        remark="ByteZSzn/Flux.2-Turbo-ComfyUI has a file of the same name",
    ),
)
