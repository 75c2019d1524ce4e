"""For Z-Image; its Turbo is distilled itself."""

from lcmmerge.accelerators.base import Accelerator, Span, flow

REPO = "alibaba-pai/Z-Image-Fun-Lora-Distill"
ENTRIES = tuple(
    Accelerator(
        f"z-image-{steps}steps",
        {"z_image": f"hf://{REPO}/Z-Image-Fun-Lora-Distill-{steps}-Steps-2603.safetensors"},
        flow(steps),
        (f"https://huggingface.co/{REPO}", "https://github.com/huggingface/diffusers/pull/13126"),
        "apache-2.0",
        base="Z-Image",
        strength=Span(0.8, 0.7, 0.8),
        unverified=("licence",),
    )
    for steps in (2, 4, 8)
)
