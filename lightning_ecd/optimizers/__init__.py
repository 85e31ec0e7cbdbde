"""One registry of optimizers; to register one, add one line."""

from typing import Any

from torch.optim import Optimizer

from lightning_ecd.optimizers.base import Descent
from lightning_ecd.optimizers.bbi import BBI
from lightning_ecd.optimizers.ecd import ECD
from lightning_ecd.optimizers.ecdq1 import ECDq1
from lightning_ecd.optimizers.ecdsep import ECDSep, ECDSepLeapfrog
from lightning_ecd.optimizers.entropy import EntropySGD
from lightning_ecd.optimizers.entropy_adam import EntropyAdam
from lightning_ecd.optimizers.entropy_ecd import EntropyECD
from lightning_ecd.optimizers.evolution import NES, RBDNES, ZeroOrderRBD
from lightning_ecd.optimizers.gradient_basis import GradientBasis
from lightning_ecd.optimizers.langevin import SGLD, EntropySGLD
from lightning_ecd.optimizers.learned import Learned
from lightning_ecd.optimizers.plain import HeavyBall
from lightning_ecd.optimizers.proximal import Lookahead, ProxSGD
from lightning_ecd.optimizers.rbd import FPD, RBD
from lightning_ecd.optimizers.relaxation import FP, HEAT, HJB
from lightning_ecd.optimizers.replicas import ElasticSGD, Parle
from lightning_ecd.optimizers.sharpness import ASAM, SAM, LookSAM
from lightning_ecd.optimizers.torch_optim import ADAM, ADAMW, RMSPROP, SGD
from lightning_ecd.optimizers.traits import UNKNOWN, Entry, Traits

REGISTRY: dict[str, Entry] = {
    "SGD": SGD,
    "Adam": ADAM,
    "AdamW": ADAMW,
    "RMSprop": RMSPROP,
    "HeavyBall": Entry(HeavyBall, HeavyBall.traits),
    "BBI": Entry(BBI, BBI.traits),
    "ECDSep": Entry(ECDSep, ECDSep.traits),
    "ECDSepLeapfrog": Entry(ECDSepLeapfrog, ECDSepLeapfrog.traits),
    "ECDq1": Entry(ECDq1, ECDq1.traits),
    "EntropySGD": Entry(EntropySGD, EntropySGD.traits),
    "EntropyAdam": Entry(EntropyAdam, EntropyAdam.traits),
    "EntropyECD": Entry(EntropyECD, EntropyECD.traits),
    "EntropySGLD": Entry(EntropySGLD, EntropySGLD.traits),
    "SGLD": Entry(SGLD, SGLD.traits),
    "HJB": Entry(HJB, HJB.traits),
    "HEAT": Entry(HEAT, HEAT.traits),
    "FP": Entry(FP, FP.traits),
    "ProxSGD": Entry(ProxSGD, ProxSGD.traits),
    "Lookahead": Entry(Lookahead, Lookahead.traits),
    "Parle": Entry(Parle, Parle.traits),
    "ElasticSGD": Entry(ElasticSGD, ElasticSGD.traits),
    "SAM": Entry(SAM, SAM.traits),
    "ASAM": Entry(ASAM, ASAM.traits),
    "LookSAM": Entry(LookSAM, LookSAM.traits),
    "RBD": Entry(RBD, RBD.traits),
    "FPD": Entry(FPD, FPD.traits),
    "NES": Entry(NES, NES.traits),
    "RBDNES": Entry(RBDNES, RBDNES.traits),
    "ZeroOrderRBD": Entry(ZeroOrderRBD, ZeroOrderRBD.traits),
    "GradientBasis": Entry(GradientBasis, GradientBasis.traits),
    "Learned": Entry(Learned, Learned.traits),
}


def hyperparameters_of(optimizer: Optimizer) -> dict[str, Any]:
    """Return the hyper-parameters of an optimizer's first group."""
    return {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}


def traits_of(cls: type) -> Traits:
    """Return the record of an optimizer class, registered or not.

    Args:
        cls: Any optimizer class.

    Returns:
        Its registered traits, its own `traits`, or `UNKNOWN`.
    """
    for entry in REGISTRY.values():
        if entry.cls is cls:
            return entry.traits
    return getattr(cls, "traits", UNKNOWN)


__all__ = [
    "ASAM",
    "BBI",
    "ECD",
    "FP",
    "FPD",
    "HEAT",
    "HJB",
    "NES",
    "RBD",
    "RBDNES",
    "REGISTRY",
    "SAM",
    "SGLD",
    "Descent",
    "ECDSep",
    "ECDSepLeapfrog",
    "ECDq1",
    "ElasticSGD",
    "EntropyAdam",
    "EntropyECD",
    "EntropySGD",
    "EntropySGLD",
    "Entry",
    "GradientBasis",
    "HeavyBall",
    "Learned",
    "LookSAM",
    "Lookahead",
    "Parle",
    "ProxSGD",
    "Traits",
    "ZeroOrderRBD",
    "hyperparameters_of",
    "traits_of",
]
