"""Random bases, made from seeds when they are needed and never stored.

==========================  ============================  ==========================
basis                       rows                          cost of one step
==========================  ============================  ==========================
`normal`                    N(0, 1)                       2 d n normal numbers
`rademacher`                -1 or 1                       2 d n random bits
`uniform`                   uniform in [-1, 1)            2 d n numbers
`bernoulli_reference`       1/2 or -3/2                   2 d n random bits
`lognormal`                 exp(z) - exp(1/2)             2 d n normal numbers
`orthonormal`               a random frame                d² n, and d n of memory
`srht`                      signed rows of H, orthogonal  2 n log n additions
`countsketch`               disjoint, orthogonal          2 n
`in_law`                    normal, drawn in law          n + d normal numbers
`orthonormal_in_law`        a random frame, in law        n + d normal numbers
==========================  ============================  ==========================
"""

from lightning_ecd.bases.basis import Basis
from lightning_ecd.bases.compartments import Compartment, divide, table
from lightning_ecd.bases.independent import (
    BernoulliReference,
    Lognormal,
    Normal,
    Rademacher,
    Uniform,
)
from lightning_ecd.bases.law import InLaw, OrthonormalInLaw
from lightning_ecd.bases.projector import Explicit, Projector
from lightning_ecd.bases.structured import SRHT, CountSketch, Orthonormal

BASES: dict[str, type[Basis]] = {
    "normal": Normal,
    "rademacher": Rademacher,
    "uniform": Uniform,
    "bernoulli_reference": BernoulliReference,
    "lognormal": Lognormal,
    "orthonormal": Orthonormal,
    "srht": SRHT,
    "countsketch": CountSketch,
    "in_law": InLaw,
    "orthonormal_in_law": OrthonormalInLaw,
}

__all__ = [
    "BASES",
    "Basis",
    "Compartment",
    "Explicit",
    "Projector",
    "divide",
    "table",
]
