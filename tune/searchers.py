"""Which points of a space to try: random, quasi-random, grid, Optuna, HyperOpt.

Every searcher builds one of Ray's, which suggests points and is told what came of
them. All are deterministic functions of their seed and of what they are told.
"""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from ray.tune.search import Searcher as RaySearcher

from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError
from tune.spaces import Point, Space

#: The hyper-parameter that says of which study a trial is: see `Studies`.
STUDY = "study"


class Searcher(ABC):
    """Chooses the points of a search."""

    @abstractmethod
    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:
        """Return a new searcher of Ray's.

        Args:
            space: Where to look.
            metric: What trials report.
            mode: "min" or "max".
        """

    def samples(self, space: Space, asked: int) -> int:
        """Return how many trials a search makes that was asked for so many."""
        return asked


class Random(Searcher):
    """Independent points.

    Args:
        seed: Of the points.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:  # noqa: D102
        def point(i: int) -> Point:
            draws = np.random.default_rng([self.seed, i])
            return space.at(draws.random(len(space.coordinates)))

        return _Sequence(point, metric, mode)


class QuasiRandom(Searcher):
    """A scrambled Sobol sequence: points that fill the space more evenly.

    Args:
        seed: Of the scrambling.

    Reference:
        A. B. Owen, Scrambling Sobol' and Niederreiter-Xing points, Journal of
        Complexity 14 (1998).
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:  # noqa: D102
        def point(i: int) -> Point:
            return space.at(sobol(len(space.coordinates), self.seed, i))

        return _Sequence(point, metric, mode)


def sobol(dimensions: int, seed: int, index: int) -> NDArray[np.float64]:
    """Return a point of a scrambled Sobol sequence in the unit cube."""
    from scipy.stats import qmc  # takes seconds, which workers need not wait

    points = qmc.Sobol(dimensions, rng=seed)
    if index:
        points.fast_forward(index)
    return points.random(1)[0]


class Studies(Searcher):
    """Some quasi-random points for each value of the hyper-parameter `study`.

    Args:
        trials: Points of a study.
        studies: Values of `study`, 0, 1, ...: the seeds of the points.
    """

    def __init__(self, trials: int, studies: int):
        self.trials, self.studies = trials, studies

    def samples(self, space: Space, asked: int) -> int:  # noqa: D102
        return self.trials * self.studies

    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:  # noqa: D102
        ranges = {k: v for k, v in space.coordinates.items() if k != STUDY}

        def point(i: int) -> Point | None:
            if i >= self.trials * self.studies:
                return None
            study, number = divmod(i, self.trials)
            drawn = dict(zip(ranges, sobol(len(ranges), study, number), strict=True))
            drawn[STUDY] = (study + 0.5) / self.studies
            return space.at(drawn[name] for name in space.coordinates)

        return _Sequence(point, metric, mode)


class Grid(Searcher):
    """Every point of a space of choices and integers, once."""

    def samples(self, space: Space, asked: int) -> int:  # noqa: D102
        return len(space.grid())

    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:  # noqa: D102
        points = space.grid()

        def point(i: int) -> Point | None:
            return points[i] if i < len(points) else None

        return _Sequence(point, metric, mode)


class Optuna(Searcher):
    """A sampler of Optuna, an extra: ``pip install -e '.[search]'``.

    Args:
        sampler: "tpe", the tree-structured Parzen estimator; or "cmaes", a Gaussian
            evolution strategy for spaces of numbers (it needs the package cmaes).
        startup: Random points before the model takes over, at least 1.
        multivariate: Whether TPE models all coordinates jointly.
        seed: Of the points.

    Reference:
        T. Akiba et al., Optuna: a next-generation hyperparameter optimization
        framework, KDD 2019, arXiv:1907.10902.
    """

    def __init__(
        self,
        sampler: Literal["tpe", "cmaes"] = "tpe",
        startup: int = 10,
        multivariate: bool = False,
        seed: int = 0,
    ):
        at_least(1, startup=startup)
        if sampler not in ("tpe", "cmaes"):
            raise ValueError(f"sampler must be tpe or cmaes, got {sampler!r}")
        self.sampler, self.startup = sampler, startup
        self.multivariate, self.seed = multivariate, seed

    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:  # noqa: D102
        try:
            import optuna
            from ray.tune.search.optuna import OptunaSearch

            if self.sampler == "cmaes":
                import cmaes  # noqa: F401
        except ImportError as error:
            raise UserError(_missing("Optuna", error)) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler: Any
        if self.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.startup,
                multivariate=self.multivariate,
                seed=self.seed,
            )
        else:
            sampler = optuna.samplers.CmaEsSampler(
                n_startup_trials=self.startup, seed=self.seed
            )
        domains = OptunaSearch.convert_search_space(space.domains())
        return OptunaSearch(domains, metric=metric, mode=mode, sampler=sampler)


class HyperOpt(Searcher):
    """HyperOpt's tree-structured Parzen estimator, an extra as Optuna is.

    Args:
        startup: Random points before the model takes over, at least 1.
        gamma: Share of the best points that the model takes for good, in (0, 1).
        seed: Of the points.

    Reference:
        J. Bergstra, D. Yamins, D. Cox, Making a science of model search, ICML 2013,
        arXiv:1209.5111.
    """

    def __init__(self, startup: int = 20, gamma: float = 0.25, seed: int = 0):
        at_least(1, startup=startup)
        if not 0 < gamma < 1:
            raise ValueError(f"gamma must be in (0, 1), got {gamma}")
        self.startup, self.gamma, self.seed = startup, gamma, seed

    def build(self, space: Space, metric: str, mode: str) -> RaySearcher:  # noqa: D102
        try:
            import hyperopt  # noqa: F401
            from ray.tune.search.hyperopt import HyperOptSearch
        except ImportError as error:
            raise UserError(_missing("HyperOpt", error)) from error
        return HyperOptSearch(
            HyperOptSearch.convert_search_space(space.domains()),
            metric=metric,
            mode=mode,
            n_initial_points=self.startup,
            gamma=self.gamma,
            random_state_seed=self.seed,
        )


def _missing(searcher: str, error: ImportError) -> str:
    return (
        f"searcher {searcher} needs the package {error.name}: pip install "
        "-e '.[search]', or choose Random, QuasiRandom or Grid"
    )


class _Sequence(RaySearcher):
    """Suggests point 0, 1, 2, ... of a sequence, whatever comes of them.

    Args:
        point: The point of a number; None: the sequence has ended.
        metric: What trials report.
        mode: "min" or "max".
    """

    def __init__(self, point: Callable[[int], Point | None], metric: str, mode: str):
        super().__init__(metric=metric, mode=mode)
        self._point = point
        self._next = 0

    def suggest(self, trial_id: str) -> Any:
        point = self._point(self._next)
        if point is None:
            return RaySearcher.FINISHED
        self._next += 1
        return point

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "wb") as out:
            pickle.dump(self._next, out)

    def restore(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "rb") as file:
            self._next = pickle.load(file)
