"""Studies of the theory: what a figure of the paper shows, in numbers and pictures."""

from lightning_ecd.theory.studies.curves import Budget, RegimeCurves
from lightning_ecd.theory.studies.maps import GainMap, LossMap, local_minima, loss_map
from lightning_ecd.theory.studies.momenta import BestMomentum
from lightning_ecd.theory.studies.spectra import SpectrumStudy
from lightning_ecd.theory.studies.study import Findings, TheoryStudy

__all__ = [
    "BestMomentum",
    "Budget",
    "Findings",
    "GainMap",
    "LossMap",
    "RegimeCurves",
    "SpectrumStudy",
    "TheoryStudy",
    "local_minima",
    "loss_map",
]
