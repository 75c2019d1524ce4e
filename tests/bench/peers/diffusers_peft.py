"""diffusers + PEFT: ``python diffusers_peft.py unet|pipeline|transformer CONFIG BASE STYLE LAMBDA1 LCM LAMBDA2 OUT``.

``unet`` loads and fuses the U-Net alone (the style's text encoder keys are left out), ``pipeline`` everything,
``transformer`` a diffusion transformer.
Half precision throughout, one fuse for both adapters, saved as a diffusers folder. CONFIG: a folder of configs.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file


def pipeline_class(config: str) -> type[StableDiffusionPipeline] | type[StableDiffusionXLPipeline]:
    name = DiffusionPipeline.load_config(config)["_class_name"]
    return {"StableDiffusionPipeline": StableDiffusionPipeline, "StableDiffusionXLPipeline": StableDiffusionXLPipeline}[
        name
    ]


def fuse_unet(config: str, base: str, adapters: dict[str, tuple[str, float]], out: str) -> None:
    unet = UNet2DConditionModel.from_single_file(base, config=config, subfolder="unet", torch_dtype=torch.float16)
    for name, (path, _) in adapters.items():
        tensors, alphas = pipeline_class(config).lora_state_dict(path, unet_config=unet.config)
        unet.load_lora_adapter(tensors, network_alphas=alphas, adapter_name=name, prefix="unet")
    unet.set_adapters(list(adapters), [strength for _, strength in adapters.values()])
    unet.fuse_lora()
    unet.unload_lora()
    unet.save_pretrained(f"{out}/unet")


def fuse_transformer(config: str, base: str, adapters: dict[str, tuple[str, float]], out: str) -> None:
    name = json.loads(Path(config, "transformer", "config.json").read_text())["_class_name"]
    cls = getattr(diffusers, name)
    model = cls.from_single_file(base, config=config, subfolder="transformer", torch_dtype=torch.bfloat16)
    for name, (path, _) in adapters.items():
        model.load_lora_adapter(load_file(path), prefix="transformer", adapter_name=name)
    model.set_adapters(list(adapters), [strength for _, strength in adapters.values()])
    model.fuse_lora()
    model.unload_lora()
    model.save_pretrained(f"{out}/transformer")


def fuse_pipeline(config: str, base: str, adapters: dict[str, tuple[str, float]], out: str) -> None:
    cls = pipeline_class(config)
    tokenizers = {name: None for name in cls._get_signature_keys(cls)[0] if name.startswith("tokenizer")}
    pipeline = cls.from_single_file(base, config=config, torch_dtype=torch.float16, **tokenizers)
    for name, (path, _) in adapters.items():
        pipeline.load_lora_weights(path, adapter_name=name)
    pipeline.set_adapters(list(adapters), [strength for _, strength in adapters.values()])
    components = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
    pipeline.fuse_lora(components=components)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(out)


def main(scope: str, config: str, base: str, style: str, lambda1: str, lcm: str, lambda2: str, out: str) -> None:
    adapters = {"style": (style, float(lambda1)), "lcm": (lcm, float(lambda2))}
    {"unet": fuse_unet, "pipeline": fuse_pipeline, "transformer": fuse_transformer}[scope](config, base, adapters, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
