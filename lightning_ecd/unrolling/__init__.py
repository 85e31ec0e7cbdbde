"""A rule over a window of a problem, and how its weights are to change."""

from lightning_ecd.unrolling.evolution import (
    Evolution,
    EvolutionEstimator,
    evolution_gradient,
)
from lightning_ecd.unrolling.problem import FlatProblem, Problem, Window
from lightning_ecd.unrolling.runs import Runs, begin, unroll
from lightning_ecd.unrolling.truncated import truncated_gradient

__all__ = [
    "Evolution",
    "EvolutionEstimator",
    "FlatProblem",
    "Problem",
    "Runs",
    "Window",
    "begin",
    "evolution_gradient",
    "truncated_gradient",
    "unroll",
]
