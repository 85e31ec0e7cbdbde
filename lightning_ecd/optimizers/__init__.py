"""One registry of optimizers; to register one, add one line."""

from lightning_ecd.optimizers.base import Descent
from lightning_ecd.optimizers.bbi import BBI
from lightning_ecd.optimizers.ecd import ECD
from lightning_ecd.optimizers.ecdq1 import ECDq1
from lightning_ecd.optimizers.ecdsep import ECDSep, ECDSepLeapfrog
from lightning_ecd.optimizers.plain import HeavyBall
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
}


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
    "BBI",
    "ECD",
    "REGISTRY",
    "Descent",
    "ECDSep",
    "ECDSepLeapfrog",
    "ECDq1",
    "Entry",
    "HeavyBall",
    "Traits",
    "traits_of",
]
