"""The command `orthogonality`: cosines of random vectors against their dimension."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_ecd.bases.figures import cosines
from lightning_ecd.checks import at_least
from lightning_ecd.flat import dot, square_norm
from lightning_ecd.parser import PROGRAM, Parser, fail, one_line
from lightning_ecd.randomness import normals


def expected(n: int) -> tuple[float, float]:
    r"""Return mean and standard deviation of |cos| of two random vectors.

    :math:`\sqrt{2/(\pi n)}` and :math:`\sqrt{(1 - 2/\pi)/n}`, for large n.
    """
    return math.sqrt(2 / (math.pi * n)), math.sqrt((1 - 2 / math.pi) / n)


def measured(n: int, pairs: int, seed: int = 0) -> tuple[float, float]:
    """Return mean and standard deviation of |cos| of consecutive normal vectors.

    Args:
        n: Their dimension.
        pairs: Of vectors, each but the first and the last in two of them.
        seed: Of the draws.
    """
    like, found = torch.empty(n), []
    last = normals(like, seed, n, 0)
    square = square_norm(last)
    for i in range(1, pairs + 1):
        new = normals(like, seed, n, i)
        product, before, square = dot(last, new), square, square_norm(new)
        found.append(abs(float(product)) / math.sqrt(before * square))
        last = new
    return statistics.fmean(found), statistics.pstdev(found)


class Orthogonality:
    """How nearly orthogonal random directions are: the cosine of normal vectors.

    Args:
        powers: Dimensions are 10, 100, ..., 10^powers; 8 takes a few minutes.
        pairs: Of consecutive vectors in every dimension, at least 2.
        seed: Of the draws.
        output: The picture; the numbers lie beside it as .csv.

    Reference:
        The code of F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural network
        training in low dimensional random bases", NeurIPS 2020, arXiv 2011.04720,
        whose table has the labels of its dimensions shifted by a row.
    """

    def __init__(
        self,
        powers: int = 7,
        pairs: int = 100,
        seed: int = 0,
        output: str = "orthogonality.png",
    ):
        if not 1 <= powers <= 9:
            raise ValueError(f"powers must lie in [1, 9], got {powers}")
        at_least(2, pairs=pairs)
        self.dimensions = [10**power for power in range(1, powers + 1)]
        self.pairs, self.seed, self.output = pairs, seed, Path(output)

    def run(self) -> list[tuple[int, float, float, float, float]]:
        """Return dimension, mean and deviation of |cos|, and both expected, in rows."""
        return [
            (n, *measured(n, self.pairs, self.seed), *expected(n))
            for n in track(self.dimensions, "dimensions", transient=True)
        ]


def orthogonality(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    parser = Parser(
        prog=f"{PROGRAM} orthogonality",
        description="|cos| of random vectors against their dimension, beside theory.",
    )
    parser.arguments = args
    parser.add_class_arguments(Orthogonality)
    header = ["dimension", "mean", "std", "expected_mean", "expected_std"]
    try:
        study = Orthogonality(
            **vars(parser.instantiate_classes(parser.parse_args(list(args))))
        )
        study.output.parent.mkdir(parents=True, exist_ok=True)
        rows = study.run()
        n, means, stds, *theory = zip(*rows, strict=True)
        cosines(n, means, stds, (theory[0], theory[1])).savefig(study.output, dpi=120)
        with open(study.output.with_suffix(".csv"), "w", newline="") as out:
            csv.writer(out).writerows([header, *rows])
    except (ValueError, OSError) as error:
        fail(one_line(str(error)))
    table = Table(*header)
    for row in rows:
        table.add_row(f"{row[0]:,}", *(f"{value:.4g}" for value in row[1:]))
    Console().print(table)
    print(f"picture: {study.output}")
