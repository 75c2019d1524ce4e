"""For Wan 2.1 and 2.2; a 2.2 of 14 B is two experts, each with a file of its own.

ComfyUI's graphs take Euler's steps. diffusers' WanPipeline asks its scheduler for timesteps, and of its Euler it gets
others; DPM-Solver++ of the first order has theirs, and its step through a flow is Euler's.
"""

from lcmmerge.accelerators.base import COMFY, Accelerator, File, Sampling, Span

EULER = {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "zero"}
BOUNDARY = {"t2v": 0.875, "i2v": 0.9}  # of Wan 2.2's own pipelines
LIGHTX2V = "https://github.com/ModelTC/LightX2V"


def _flow(scheduler: str, shift: float, boundary: float | None = None, **settings: object) -> Sampling:
    shifted = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return Sampling(scheduler, Span.only(4), Span.only(1), shifted | settings, boundary=boundary)


def _lightning(name: str, base: str, file: File, boundary: float | None = None, *, remark: str = "") -> Accelerator:
    first = file if isinstance(file, str) else file["transformer"]
    repo = "/".join(first.removeprefix("hf://").split("/")[:2])
    return Accelerator(
        name,
        {"wan": file},
        _flow("DPMSolverMultistepScheduler", 5.0, boundary, **EULER),
        (f"https://huggingface.co/{repo}", LIGHTX2V, COMFY),
        "apache-2.0",
        remark=remark,
        base=base,
        unverified=("boundary",) if boundary else (),
    )


def _causvid(name: str, base: str, file: str) -> Accelerator:
    return Accelerator(
        name,
        {"wan": f"hf://Kijai/WanVideo_comfy/{file}.safetensors"},
        _flow("UniPCMultistepScheduler", 8.0),
        ("https://github.com/tianweiy/CausVid", "https://huggingface.co/Kijai/WanVideo_comfy"),
        None,
        base=base,
        strength=Span.only(0.7),
    )


def _pair(task: str, name: str, file: str) -> Accelerator:
    """``file``: with a place for ``high`` and ``low``."""
    experts = {"transformer": "high", "transformer_2": "low"}
    pair = {expert: f"hf://{file.format(noise)}.safetensors" for expert, noise in experts.items()}
    return _lightning(f"wan22-{task}-{name}", f"Wan 2.2 {task.upper()} A14B", pair, BOUNDARY[task])


ENTRIES = (
    _lightning(
        "wan21-t2v-4steps",
        "Wan 2.1 T2V 14B",
        "hf://lightx2v/Wan2.1-Distill-Loras/wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors",
    ),
    _lightning(
        "wan21-i2v-4steps",
        "Wan 2.1 I2V 14B",
        "hf://lightx2v/Wan2.1-Distill-Loras/wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors",
        remark="SCAIL's graph has it at 0.8, in 6 steps",
    ),
    _causvid("wan21-causvid-14b", "Wan 2.1 T2V 14B", "Wan21_CausVid_14B_T2V_lora_rank32"),
    _causvid("wan21-causvid-1b", "Wan 2.1 T2V 1.3B", "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32"),
    _pair(
        "t2v",
        "comfy",
        "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/split_files/loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_{}_noise",
    ),
    _pair(
        "i2v",
        "comfy",
        "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/split_files/loras/wan2.2_i2v_lightx2v_4steps_lora_v1_{}_noise",
    ),
    _pair(
        "t2v",
        "4steps",
        "lightx2v/Wan2.2-Distill-Loras/wan2.2_t2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1217",
    ),
    _pair(
        "i2v",
        "4steps",
        "lightx2v/Wan2.2-Distill-Loras/wan2.2_i2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1022",
    ),
)
