"""sd-mecha, by its own recipe API: ``python mecha.py BASE STYLE LAMBDA1 LCM LAMBDA2 OUT``.

A LoRA's keys become a delta over the parameters that it names; ``| base`` keeps the others. Its checks for
non-finite values are switched off: they cost it time, and its threads and buffers are its own defaults.
"""

import sys

import sd_mecha
import torch
from sd_mecha.keys_map import RealizedKeyRelation

# sd-mecha 1.1.8 subscripts its key relation when it converts an SD1 LoRA, and the class has no subscript.
if not hasattr(RealizedKeyRelation, "__getitem__"):
    RealizedKeyRelation.__getitem__ = lambda self, name: self.inputs[name]


def main(base: str, style: str, style_strength: str, lcm: str, lcm_strength: str, out: str) -> None:
    recipe = model = sd_mecha.model(base)
    for path, strength in ((style, style_strength), (lcm, lcm_strength)):
        delta = sd_mecha.convert(sd_mecha.model(path), model)
        recipe = recipe + delta * float(strength) | recipe
    sd_mecha.merge(
        recipe,
        merge_dtype=torch.float32,
        output_dtype=torch.float16,
        check_finite_output=False,
        omit_non_finite_inputs=False,
        output=out,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
