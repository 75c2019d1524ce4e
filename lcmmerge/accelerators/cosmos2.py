"""For Anima, a Cosmos-Predict 2 of pictures."""

from lcmmerge.accelerators.base import COMFY, NON_COMMERCIAL, Accelerator, flow

REPO = "circlestone-labs/Anima-Official-LoRAs"
ENTRIES = (
    Accelerator(
        "anima-turbo",
        {"cosmos2": f"hf://{REPO}/anima-turbo-lora-v0.2.safetensors"},
        flow(8),
        (f"https://huggingface.co/{REPO}", COMFY),
        "circlestone-labs-non-commercial-license-1.2",
        NON_COMMERCIAL,
    ),
)
