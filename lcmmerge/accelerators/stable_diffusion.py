"""For Stable Diffusion 1, 2 and XL, and SSD-1B and Segmind-Vega, which are XL with fewer blocks.

Not here: what is a dense delta (PeRFlow), or needs a scheduler that diffusers lacks (TDD).
"""

from lcmmerge.accelerators.base import NO_DERIVATIVES, NON_COMMERCIAL, TRAILING, Accelerator, Sampling, Span


def _lcm() -> Accelerator:
    hub = "hf://latent-consistency/lcm-lora-{}/pytorch_lora_weights.safetensors"
    return Accelerator(
        "lcm",
        {
            "sd1": hub.format("sdv1-5"),
            "sdxl": hub.format("sdxl"),
            "ssd1b": hub.format("ssd-1b"),
            "segmind_vega": "hf://segmind/Segmind-VegaRT/pytorch_lora_weights.safetensors",
        },
        Sampling("LCMScheduler", Span(4, 2, 8), Span(1, 0, 2)),
        (
            "https://arxiv.org/abs/2311.05556",
            "https://huggingface.co/latent-consistency/lcm-lora-sdxl",
            "https://huggingface.co/segmind/Segmind-VegaRT",
        ),
        remark="its file for segmind_vega is Segmind-VegaRT, under apache-2.0",
    )


def _tcd() -> Accelerator:
    hub = "hf://h1t/TCD-{}-LoRA/pytorch_lora_weights.safetensors"
    return Accelerator(
        "tcd",
        {"sd1": hub.format("SD15"), "sd2": hub.format("SD21-base"), "sdxl": hub.format("SDXL")},
        Sampling("TCDScheduler", Span(4, 4, 50), Span.only(0), arguments={"eta": 0.3}),
        (
            "https://arxiv.org/abs/2402.19159",
            "https://huggingface.co/h1t/TCD-SDXL-LoRA",
            "https://huggingface.co/docs/diffusers/using-diffusers/inference_with_tcd_lora",
        ),
        "mit",
        remark="its file for sd2 was made for 2.1-base (512 px), not for the v-prediction models",
    )


def _hyper(steps: str, sampling: Sampling, *, cfg: bool = False) -> Accelerator:
    hub = f"hf://ByteDance/Hyper-SD/Hyper-{{}}-{steps}{'-CFG' if cfg else ''}-lora.safetensors"
    return Accelerator(
        f"hyper-{'cfg-' if cfg else ''}{steps}",
        {"sd1": hub.format("SD15"), "sdxl": hub.format("SDXL")},
        sampling,
        ("https://arxiv.org/abs/2404.13686", "https://huggingface.co/ByteDance/Hyper-SD"),
        unverified=("scheduler", "default guidance") if cfg else (),
    )


def _lightning(steps: int) -> Accelerator:
    return Accelerator(
        f"lightning-{steps}steps",
        {"sdxl": f"hf://ByteDance/SDXL-Lightning/sdxl_lightning_{steps}step_lora.safetensors"},
        Sampling("EulerDiscreteScheduler", Span.only(steps), Span.only(0), TRAILING),
        ("https://arxiv.org/abs/2402.13929", "https://huggingface.co/ByteDance/SDXL-Lightning"),
    )


def _pcm(name: str, file: str, sampling: Sampling) -> Accelerator:
    hub = f"hf://wangfuyun/PCM_Weights/{{0}}/pcm_{{0}}_{file}_converted.safetensors"
    return Accelerator(
        name,
        {"sd1": hub.format("sd15"), "sdxl": hub.format("sdxl")},
        sampling,
        (
            "https://arxiv.org/abs/2405.18407",
            "https://huggingface.co/wangfuyun/PCM_Weights",
            "https://huggingface.co/spaces/wangfuyun/Phased-Consistency-Model-PCM",
        ),
        licence=None,
    )


def _dmd2() -> Accelerator:
    # Trained at the timesteps 999, 749, 499 and 249, which LCMScheduler takes where it chooses among all 1000.
    return Accelerator(
        "dmd2",
        {"sdxl": "hf://tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors"},
        Sampling("LCMScheduler", Span.only(4), Span.only(0), {"original_inference_steps": 1000}),
        ("https://arxiv.org/abs/2405.14867", "https://huggingface.co/tianweiy/DMD2"),
        "cc-by-nc-4.0",
        NON_COMMERCIAL,
    )


def _flash(name: str, arch: str, steps: Span, licence: str, restriction: str) -> Accelerator:
    return Accelerator(
        name,
        {arch: f"hf://jasperai/{name}/pytorch_lora_weights.safetensors"},
        Sampling("LCMScheduler", steps, Span.only(0), TRAILING),
        ("https://arxiv.org/abs/2406.02347", f"https://huggingface.co/jasperai/{name}"),
        licence,
        restriction,
    )


def _yoso() -> Accelerator:
    return Accelerator(
        "yoso",
        {"sd1": "hf://Luo-Yihong/yoso_sd1.5_lora/yoso_lora.safetensors"},
        Sampling("LCMScheduler", Span(2, 1, 2), Span.only(1.5)),
        ("https://arxiv.org/abs/2403.12931", "https://huggingface.co/Luo-Yihong/yoso_sd1.5_lora"),
        licence=None,
    )


def _ddim(steps: int, guidance: Span) -> Sampling:
    return Sampling("DDIMScheduler", Span.only(steps), guidance, TRAILING)


def _tcd_trailing(steps: int, guidance: float) -> Sampling:
    return Sampling("TCDScheduler", Span.only(steps), Span.only(guidance), TRAILING)


ENTRIES = (
    _lcm(),
    _tcd(),
    _hyper("1step", Sampling("TCDScheduler", Span(1, 1, 8), Span.only(0), arguments={"eta": 1.0})),
    *(_hyper(f"{steps}steps", _ddim(steps, Span.only(0))) for steps in (2, 4, 8)),
    *(_hyper(f"{steps}steps", _ddim(steps, Span(5, 5, 8)), cfg=True) for steps in (8, 12)),
    *map(_lightning, (2, 4, 8)),
    *(_pcm(f"pcm-{steps}steps", f"smallcfg_{steps}step", _tcd_trailing(steps, 0)) for steps in (2, 4, 8, 16)),
    *(_pcm(f"pcm-cfg-{steps}steps", f"normalcfg_{steps}step", _tcd_trailing(steps, 7.5)) for steps in (4, 8, 16)),
    _pcm("pcm-lcm", "lcmlike_lora", Sampling("LCMScheduler", Span(4, 1, 20), Span.only(0))),
    _dmd2(),
    _flash("flash-sd", "sd1", Span(4, 2, 4), "cc-by-nc-4.0", NON_COMMERCIAL),
    _flash("flash-sdxl", "sdxl", Span.only(4), "cc-by-nc-nd-4.0", NO_DERIVATIVES),
    _yoso(),
)
