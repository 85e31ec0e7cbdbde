"""Curvature of a loss: products with its Hessian, spectra, traces, eigenpairs."""

from lightning_ecd.curvature.batches import batches_of, fixed_batches
from lightning_ecd.curvature.loss import Loss, Matrix
from lightning_ecd.curvature.spectrum import (
    Spectrum,
    lanczos,
    lanczos_quadrature,
    side_by_side,
    top_eigenpairs,
)
from lightning_ecd.curvature.trace import (
    hutchinson_diagonal,
    hutchinson_trace,
    hutchpp_trace,
)

__all__ = [
    "Loss",
    "Matrix",
    "Spectrum",
    "batches_of",
    "fixed_batches",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "hutchpp_trace",
    "lanczos",
    "lanczos_quadrature",
    "side_by_side",
    "top_eigenpairs",
]
