"""The command `dimensions`: what so many random directions can do.

Fits an experiment with d = 10, 30, ... directions. The smallest d of a fixed subspace
(FPD) that reaches 90 % of what all parameters reach is the task's intrinsic dimension.
"""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_ecd.errors import Diverged, UserError
from lightning_ecd.parser import PROGRAM, Parser, fail, new_folder, one_line
from tune.sources import Numbers, interrupted, run_experiment

#: What an optimizer in random bases logs about itself.
_COSINE, _PARAMETERS = "optimizer/cosine", "optimizer/parameters"
_HEADER = ["dimensions", "seed", "value", "cosine"]


class Dimensions:
    """Accuracy against the number of random directions.

    Args:
        experiment: A file of configs/experiment whose optimizer takes `dimensions`.
        dimensions: Numbers d of directions, each at least 1.
        arguments: Further flags of every fit, such as --trainer.max_epochs=3.
        baseline: Flags of a fit in the whole space to compare with, such as
            --model.optimizer=SGD; none: no comparison.
        metric: What to read at the end of a fit; higher is better.
        share: Part of the baseline, in (0, 1], that is to be reached.
        seeds: One run for each, of data, network and directions.

    Reference:
        C. Li, H. Farkhoor, R. Liu, J. Yosinski, "Measuring the intrinsic dimension of
        objective landscapes", ICLR 2018, arXiv:1804.08838.
    """

    def __init__(
        self,
        experiment: str,
        dimensions: list[int],
        arguments: list[str] | None = None,
        baseline: list[str] | None = None,
        metric: str = "val/accuracy",
        share: float = 0.9,
        seeds: list[int] | None = None,
    ):
        if not dimensions or min(dimensions) < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        if not Path(experiment).is_file():
            raise ValueError(f"experiment: there is no file {experiment}")
        self.experiment, self.metric, self.share = experiment, metric, share
        self.dimensions = sorted(set(dimensions))
        self.arguments, self.baseline = arguments or [], baseline or []
        self.seeds = seeds or [0]
        self.parameters = 0
        #: Of every d, and of the baseline under 0, a list over seeds.
        self.values: dict[int, list[float]] = {}
        self.cosines: dict[int, list[float]] = {}

    def run(self) -> None:
        """Fit the baseline, then with every d and seed."""
        for seed in self.seeds if self.baseline else []:
            print(f"baseline, seed {seed} ...")
            self._keep(0, self._fit(self.baseline, seed))
        for d in self.dimensions:
            for seed in self.seeds:
                print(f"d = {d:,}, seed {seed} ...")
                flags = [f"--model.optimizer.dimensions={d}"]
                found = self._fit([*flags, f"--model.optimizer.seed={seed}"], seed)
                self._keep(d, found)
                self.parameters = int(found.get(_PARAMETERS, self.parameters))

    def _fit(self, flags: list[str], seed: int) -> Numbers:
        words = ["--config", self.experiment, f"--data.seed={seed}", *self.arguments]
        try:
            return run_experiment([*words, *flags], seed)
        except Diverged:
            return {}

    def _keep(self, d: int, found: Numbers) -> None:
        if found and self.metric not in found:
            known = ", ".join(found)
            raise UserError(
                f"--metric: there is no {self.metric!r} after a fit; there are {known}"
            )
        self.values.setdefault(d, []).append(found.get(self.metric, math.nan))
        self.cosines.setdefault(d, []).append(found.get(_COSINE, math.nan))

    def mean(self, d: int) -> float:
        """Return the mean over seeds; nan with a run that diverged."""
        return statistics.fmean(self.values[d])

    def enough(self) -> int | None:
        """Return the smallest d that reaches the share of the baseline, if any."""
        least = self.share * self.mean(0)
        reached = (d for d in self.dimensions if d in self.values)
        return next((d for d in reached if self.mean(d) >= least), None)

    def write(self, folder: Path) -> None:
        """Write dimensions.csv and dimensions.png."""
        from lightning_ecd.bases.figures import accuracy_by_dimensions

        with open(folder / "dimensions.csv", "w", newline="", encoding="utf-8") as out:
            table = csv.writer(out)
            table.writerow(_HEADER)
            for d, values in self.values.items():
                seeds = self.seeds[: len(values)]  # fewer if it was interrupted
                for row in zip(seeds, values, self.cosines[d], strict=True):
                    table.writerow([d or "all", *row])
        known = [d for d in self.dimensions if d in self.values]
        figure = accuracy_by_dimensions(
            known,
            [self.values[d] for d in known],
            [self.cosines[d] for d in known],
            self.parameters,
            self.metric,
            self.mean(0) if 0 in self.values else None,
            self.share,
        )
        figure.savefig(folder / "dimensions.png", dpi=120)


def main(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    parser = Parser(
        prog=f"{PROGRAM} dimensions",
        description="A metric and cos(gradient, step) against the number of random "
        "directions; with a fixed basis (FPD), the intrinsic dimension.",
    )
    parser.arguments = args
    parser.add_class_arguments(Dimensions)
    values = vars(parser.instantiate_classes(parser.parse_args(list(args))))
    try:
        study = Dimensions(**values)
    except ValueError as error:
        fail(one_line(str(error)))
    try:
        study.run()
    except UserError as error:
        _report(study)
        fail(one_line(str(error)))
    except (KeyboardInterrupt, SystemExit) as end:
        _report(study)
        if not interrupted(end):  # the parser has said why
            raise
        print(f"interrupted after {sum(map(len, study.values.values()))} runs")
        raise SystemExit(130) from None
    else:
        _report(study)


def _report(study: Dimensions) -> None:
    """Write what was found, and print it; nothing of nothing."""
    if not any(study.values.get(d) for d in study.dimensions):
        return
    folder = new_folder(f"dimensions_{Path(study.experiment).stem}")
    study.write(folder)
    table = Table("d", study.metric, "runs")
    for d, found in study.values.items():
        table.add_row(f"{d:,}" if d else "all", f"{study.mean(d):.4f}", str(len(found)))
    Console().print(table)
    if 0 in study.values and math.isnan(study.mean(0)):
        print("the baseline diverged")
    elif 0 in study.values:
        least = study.enough()
        which = f"is {least:,}" if least else f"is above {study.dimensions[-1]:,}"
        print(f"the smallest d that reaches {study.share:.0%} of the baseline {which}")
    print(f"picture: {folder}/dimensions.png")
