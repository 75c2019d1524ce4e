"""What ``export.py`` exports: ``python exportmodels.py --size sd1 --workdir DIR`` fills ``DIR/<size>/pipeline``.

A diffusers folder. Stable Diffusion 1.5's has torch's own initial weights from a fixed seed, in fp16, since its graphs
are run; SDXL's has configs alone, to go with ``base.safetensors`` of ``models.py``. The tokenizers know letters.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree, rmtree

import click
import torch
from sizes import SIZES, Size

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
PARTS = ("unet", "vae", "text_encoder")


def write_tokenizer(folder: Path) -> None:
    """CLIP's, of single characters. The ids are not the published ones; graphs take any."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *SPECIAL]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = dict(zip(("bos_token", "eos_token"), SPECIAL, strict=True)) | dict.fromkeys(
        ("unk_token", "pad_token"), SPECIAL[1]
    )
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_configs(size: Size, configs: Path, folder: Path) -> None:
    """Those of ``models.py``, with tokenizers."""
    copytree(configs, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for name in size.text_encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        write_tokenizer(folder / tokenizer)
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def write_weights(size: Size, folder: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    makers = {
        "unet": lambda: UNet2DConditionModel(**size.unet),
        "vae": lambda: AutoencoderKL(**size.vae),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**size.text_encoders["text_encoder"])),
    }
    for name in PARTS:
        torch.nn.Module.to(makers[name](), dtype=torch.float16).save_pretrained(folder / name)


@click.command(help="Make the diffusers folder of one size.")
@click.option("--size", type=click.Choice(list(SIZES)), required=True)
@click.option("--workdir", type=click.Path(path_type=Path), required=True)
def main(size: str, workdir: Path) -> None:
    folder, unfinished = workdir / size / "pipeline", workdir / size / "pipeline.partial"
    if folder.exists():
        return
    rmtree(unfinished, ignore_errors=True)
    write_configs(SIZES[size], workdir / size / "config", unfinished)
    if size == "sd1":
        write_weights(SIZES[size], unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
