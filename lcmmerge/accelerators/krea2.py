"""For Krea 2: Raw, of which the first makes Turbo, and Turbo."""

from lcmmerge.accelerators.base import COMFY, Accelerator, Sampling, Span, flow
from lcmmerge.archs.krea2 import ARCHITECTURE

MU = 1.15


def _of(name: str, base: str, file: str, sampling: Sampling, strength: Span, *unverified: str) -> Accelerator:
    repo = "/".join(file.split("/")[:2])
    return Accelerator(
        name,
        {"krea2": f"hf://{file}.safetensors"},
        sampling,
        (f"https://huggingface.co/{repo}", COMFY),
        "krea-2-community-license",
        duty=ARCHITECTURE.family.duty,
        base=base,
        strength=strength,
        unverified=unverified,
    )


ENTRIES = (
    _of(
        "krea2-turbo",
        "Krea 2 Raw",
        "Comfy-Org/Krea-2/loras/krea2_turbo_lora_rank_64_bf16",
        flow(8, 0, mu=MU),
        Span(0.8, 0.75, 0.85),
        "strength",
    ),
    _of(
        "krea2-4steps",
        "Krea 2 Turbo",
        "lvladikov/Krea2-Turbo-Distill-4step-LoRA/krea2_turbo_4step_rank_64_lora",
        flow(4, mu=MU),
        Span.only(1),
        "shift",
    ),
)
