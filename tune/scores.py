r"""What a comparison says: targets, times to them, profiles, final values, sensitivity.

Everything is computed from two tables: `trials`, a line for each, and `curves`, a line
for each validation of a trial. Legend: t, evaluations of the gradient or seconds;
s, study.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from tune.statistics import holm, mean_and_error

#: What is paid with.
Price = Literal["evaluations", "seconds"]
PRICES: tuple[Price, Price] = ("evaluations", "seconds")
#: Performance profiles end where an optimizer takes so many times as long as the best.
TAU_MAX = 4.0


@dataclass(frozen=True)
class Rules:
    """How scores are made.

    Attributes:
        metrics: Task -> what is compared.
        modes: Task -> "min" or "max".
        budgets: Task -> evaluations of a trial.
        baselines: Optimizers that set the targets.
        share: Of the evaluations that they have for it.
    """

    metrics: Mapping[str, str]
    modes: Mapping[str, str]
    budgets: Mapping[str, int]
    baselines: Sequence[str]
    share: float


class Scores:
    """The scores of a comparison.

    Args:
        trials: Columns task, optimizer, study, trial, status, and the
            hyper-parameters as ``config/...``.
        curves: Columns task, optimizer, study, trial, evaluations, seconds, value.
        rules: How scores are made.

    Attributes:
        tasks: In the order of the table.
        optimizers: Likewise.
    """

    def __init__(self, trials: pd.DataFrame, curves: pd.DataFrame, rules: Rules):
        self.trials, self.curves, self.rules = trials, curves, rules
        self.tasks = list(dict.fromkeys(trials["task"]))
        self.optimizers = list(dict.fromkeys(trials["optimizer"]))
        self._targets = {task: self._target(task) for task in self.tasks}

    def best_values(self, task: str, optimizer: str, share: float = 1.0) -> pd.Series:
        """Return study -> best value of its best trial; the worst there is: none.

        Args:
            task: Which task.
            optimizer: Which optimizer.
            share: Of the evaluations that count.
        """
        rows = self._of(self.curves, task, optimizer)
        limit = share * self.rules.budgets[task]
        rows = rows[(rows["evaluations"] <= limit) & np.isfinite(rows["value"])]
        groups = rows.groupby("study")["value"]
        low = self.rules.modes[task] == "min"
        best = groups.min() if low else groups.max()
        worst = math.inf if low else -math.inf
        return best.reindex(self._studies(task, optimizer), fill_value=worst)

    def best_of_trials(self, task: str, optimizer: str) -> pd.DataFrame:
        """Return the trials, with the best value of each as `value`; nan: none."""
        keys = ["study", "trial"]
        groups = self._of(self.curves, task, optimizer).groupby(keys)["value"]
        best = groups.min() if self.rules.modes[task] == "min" else groups.max()
        own = self._of(self.trials, task, optimizer)
        return own.merge(best.reset_index(), on=keys, how="left")

    def curves_of_best(self, task: str, optimizer: str) -> pd.DataFrame:
        """Return the curves of the best trial of every study."""
        table = self.best_of_trials(task, optimizer).dropna(subset="value")
        low = self.rules.modes[task] == "min"
        groups, keys = table.groupby("study")["value"], ["study", "trial"]
        best = table.loc[groups.idxmin() if low else groups.idxmax(), keys]
        return self._of(self.curves, task, optimizer).merge(best, on=keys)

    def target(self, task: str) -> float:
        """Return what the better baseline reaches; nan if none reaches anything."""
        return self._targets[task]

    def _target(self, task: str) -> float:
        share = self.rules.share
        medians = [
            self.best_values(task, name, share).median()
            for name in self.rules.baselines
            if name in self.optimizers
        ]
        finite = [value for value in medians if math.isfinite(value)]
        if not finite:
            return math.nan
        return min(finite) if self.rules.modes[task] == "min" else max(finite)

    def prices(self, task: str, optimizer: str, price: Price) -> pd.Series:
        """Return study -> what the fastest trial paid to the target; inf: missed."""
        rows = self._reached(task, optimizer)
        fastest = rows.groupby("study")[price].min().astype(float)
        return fastest.reindex(self._studies(task, optimizer), fill_value=math.inf)

    def table(self, price: Price) -> pd.DataFrame:
        """Return the median price to the target, tasks x optimizers; inf: missed."""
        cells = {
            name: [self.prices(task, name, price).median() for task in self.tasks]
            for name in self.optimizers
        }
        return pd.DataFrame(cells, index=self.tasks)

    def final(self, task: str) -> pd.DataFrame:
        """Return the best values of the studies, a line for each optimizer.

        Columns: mean over studies, its standard error, studies that reached anything;
        mean difference from the better baseline (of those that reached something in
        the most studies, that of the better mean), over the studies where both did, and
        the p-value of the paired t-test over these, corrected by Holm for all
        optimizers of the task.
        """
        values = {name: self.best_values(task, name) for name in self.optimizers}
        reached = {name: list(s[np.isfinite(s)]) for name, s in values.items()}
        sign = 1 if self.rules.modes[task] == "min" else -1
        rival = min(
            (name for name in self.rules.baselines if reached.get(name)),
            key=lambda name: (-len(reached[name]), sign * np.mean(reached[name])),
            default=None,
        )
        rows, tests = [], []
        for name, series in values.items():
            gap = gaps(series, values[rival]) if rival else series.iloc[:0]
            difference = mean_and_error(list(gap))[0]
            rows.append(
                [*mean_and_error(reached[name]), len(reached[name]), difference]
            )
            tests.append(math.nan if name == rival else p_value(gap))
        columns = ["mean", "error", "studies", "difference"]
        table = pd.DataFrame(rows, index=list(values), columns=columns)
        table["p"] = holm(tests)
        table.attrs["baseline"] = rival
        return table

    def reliability(self) -> pd.DataFrame:
        """Return the share of all trials that reach the target, tasks x optimizers."""
        cells = {}
        for name in self.optimizers:
            cells[name] = [
                len(self._reached(task, name).groupby(["study", "trial"]))
                / max(1, len(self._of(self.trials, task, name)))
                for task in self.tasks
            ]
        return pd.DataFrame(cells, index=self.tasks)

    def lr_width(self) -> pd.DataFrame:
        """Return the decades between the least and largest lr that reach the target.

        nan: no trial does, or there is no lr.
        """
        cells = {
            name: [self._lr_width(task, name) for task in self.tasks]
            for name in self.optimizers
        }
        return pd.DataFrame(cells, index=self.tasks)

    def _lr_width(self, task: str, optimizer: str) -> float:
        keys = ["study", "trial"]
        reached = self._reached(task, optimizer)[keys].drop_duplicates()
        own = self._of(self.trials, task, optimizer).merge(reached, on=keys)
        rates = own.get("config/lr", pd.Series(dtype=float)).dropna()
        return math.log10(rates.max() / rates.min()) if len(rates) else math.nan

    def _reached(self, task: str, optimizer: str) -> pd.DataFrame:
        """Return the validations at the target or beyond."""
        rows, target = self._of(self.curves, task, optimizer), self.target(task)
        low = self.rules.modes[task] == "min"
        return rows[rows["value"] <= target if low else rows["value"] >= target]

    def _studies(self, task: str, optimizer: str) -> list[int]:
        return sorted(self._of(self.trials, task, optimizer)["study"].unique())

    @staticmethod
    def _of(table: pd.DataFrame, task: str, optimizer: str) -> pd.DataFrame:
        return table[(table["task"] == task) & (table["optimizer"] == optimizer)]


def profile(prices: pd.DataFrame, taus: Iterable[float]) -> pd.DataFrame:
    r"""Return performance profiles, factors x optimizers.

    .. math:: \rho_o(\tau) = |\{tasks: t_o \le \tau \min_{o'} t_{o'}\}| / |tasks|

    A task that nobody solves counts against everybody.

    Args:
        prices: t, tasks x optimizers; inf: missed.
        taus: τ >= 1.

    Reference:
        E. D. Dolan, J. J. Moré, "Benchmarking optimization software with performance
        profiles", Math. Program. 91 (2002).
    """
    ratios, factors = _ratios(prices), list(taus)
    return pd.DataFrame([(ratios <= tau).mean() for tau in factors], index=factors)


def area(prices: pd.DataFrame, tau_max: float = TAU_MAX) -> pd.Series:
    r"""Return the normalised area under the profiles, in [0, 1], exactly.

    .. math:: \frac1{\tau_{max} - 1} \int_1^{\tau_{max}} \rho(\tau) d\tau

    Args:
        prices: t, tasks x optimizers; inf: missed.
        tau_max: Where the profiles end.
    """
    # a task adds the part of [1, τ_max] beyond its ratio
    return ((tau_max - _ratios(prices)).clip(lower=0) / (tau_max - 1)).mean()


def _ratios(prices: pd.DataFrame) -> pd.DataFrame:
    """Return prices over the lowest of their task; inf: missed."""
    best = prices.min(axis=1)
    return prices.div(best, axis=0).where(np.isfinite(prices), math.inf)


def gaps(a: pd.Series, b: pd.Series) -> pd.Series:
    """Return a - b over the studies where both reached something.

    Values were logged in single precision, and accuracies are multiples of 1/samples:
    gaps that differ by its rounding alone are equal.
    """
    both = pd.concat([a, b], axis=1, join="inner")
    both = both[np.isfinite(both).all(axis=1)]
    gap = both.iloc[:, 0] - both.iloc[:, 1]
    if len(gap) and gap.max() - gap.min() <= 1e-6 * both.abs().to_numpy().max():
        gap[:] = gap.mean()
    return gap


def p_value(gap: pd.Series) -> float:
    """Return that of the t-test that paired differences are 0; nan: no test.

    Fewer than two cannot be tested, nor such as do not differ.
    """
    if len(gap) < 2 or gap.max() == gap.min():
        return math.nan
    return float(stats.ttest_1samp(gap, 0.0).pvalue)
