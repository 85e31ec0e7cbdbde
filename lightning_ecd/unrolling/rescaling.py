"""Task augmentation: the same losses over other units of the parameters."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_ecd.flat import Layout
from lightning_ecd.randomness import generator
from lightning_ecd.unrolling.runs import Scales

Rescale = Literal["none", "global", "tensor", "parameter"]

_STREAM = 20


def rescaling(
    kind: Rescale, layout: Layout, low: float = 1e-3, high: float = 1e3
) -> Scales | None:
    r"""Return what draws the scales s of a run: the rule descends on f(s w).

    .. math:: \ln s \sim U(\ln low, \ln high), \qquad w_0 = \theta_0 / s

    Args:
        kind: "global": one s for all; "tensor": one for every tensor; "parameter": one
            for every coordinate; "none": no scales.
        layout: Of the parameters.
        low: The least scale, > 0.
        high: The largest.

    Reference:
        L. Metz et al., "Understanding and correcting pathologies in the training of
        learned optimizers", ICML 2019, and the released library's `reparam`.
    """
    if kind == "none":
        return None
    sizes = torch.tensor(layout.sizes)
    n = int(sizes.sum())

    def scales(seed: int) -> Tensor:
        counts = {"global": 1, "tensor": len(sizes), "parameter": n}
        share = torch.rand(counts[kind], generator=generator(seed, _STREAM))
        s = torch.exp(math.log(low) + share * math.log(high / low))
        if kind == "tensor":
            return s.repeat_interleave(sizes)
        return s.expand(n)

    return scales
