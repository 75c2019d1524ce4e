"""Task arithmetic: W′ = W + Σ λᵢΔᵢ. What is merged unless another method is named.

``merge.arithmetic`` adds it: a parameter costs one product of matrices, however many LoRAs there are.
"""

from __future__ import annotations

from lcmmerge.merge.methods.base import Method

METHOD = Method("task arithmetic", "https://arxiv.org/abs/2212.04089", combine=None)
