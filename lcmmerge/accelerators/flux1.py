"""For FLUX.1-dev, whose guidance is told to the model."""

from lcmmerge.accelerators.base import NON_COMMERCIAL, Accelerator, Span, flow

LICENCE = "flux-1-dev-non-commercial-license"


def _hyper(steps: int) -> Accelerator:
    return Accelerator(
        f"hyperflux-{steps}steps",
        {"flux1": f"hf://ByteDance/Hyper-SD/Hyper-FLUX.1-dev-{steps}steps-lora.safetensors"},
        flow(steps, 3.5, embedded=True),
        ("https://arxiv.org/abs/2404.13686", "https://huggingface.co/ByteDance/Hyper-SD"),
        LICENCE,
        NON_COMMERCIAL,
        base="FLUX.1-dev",
        strength=Span.only(0.125),
    )


ENTRIES = (
    _hyper(8),
    _hyper(16),
    Accelerator(
        "flux-turbo-alpha",
        {"flux1": "hf://alimama-creative/FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors"},
        flow(8, 3.5, embedded=True),
        ("https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha",),
        LICENCE,
        NON_COMMERCIAL,
        base="FLUX.1-dev",
    ),
)
