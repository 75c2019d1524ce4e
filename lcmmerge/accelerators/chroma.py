"""For Chroma: what its Flash models learnt."""

from lcmmerge.accelerators.base import Accelerator, Sampling, Span

REPO = "silveroxides/Chroma-LoRAs"
ENTRIES = (
    Accelerator(
        "chroma-flash-heun",
        {"chroma": f"hf://{REPO}/flash-heun/chroma-unlocked-v47-flash-heun-8steps-cfg1_r96-fp32.safetensors"},
        Sampling("FlowMatchHeunDiscreteScheduler", Span.only(8), Span.only(1), in_folders=False),
        (f"https://huggingface.co/{REPO}",),
        None,
        remark="diffusers' ChromaPipeline takes no Heun, so that a folder keeps its scheduler",
        unverified=("scheduler", "steps", "guidance", "licence"),
    ),
)
