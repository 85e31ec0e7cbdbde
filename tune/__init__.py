"""Searches over the hyper-parameters of any task and optimizer."""

from tune.constraints import Constraint
from tune.domains import domain
from tune.job import Job, Resources
from tune.schedulers import ASHA, MedianStopping, PopulationBased, Scheduler
from tune.searchers import Grid, HyperOpt, Optuna, QuasiRandom, Random, Searcher
from tune.spaces import Space
from tune.trial import Record, Trial

__all__ = [
    "ASHA",
    "Constraint",
    "Grid",
    "HyperOpt",
    "Job",
    "MedianStopping",
    "Optuna",
    "PopulationBased",
    "QuasiRandom",
    "Random",
    "Record",
    "Resources",
    "Scheduler",
    "Searcher",
    "Space",
    "Trial",
    "domain",
]
