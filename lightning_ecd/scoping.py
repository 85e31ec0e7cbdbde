"""The command `scoping`: local entropy of a landscape in one dimension, as a figure."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.signal.windows import gaussian
from scipy.special import logsumexp

from lightning_ecd.checks import above
from lightning_ecd.figures import COLOURS
from lightning_ecd.parser import PROGRAM, Parser, fail, one_line

Curve = NDArray[np.float64]
#: What the paper's figure marks: a point on the way, a wide and a sharp minimum.
MARKS = {"candidate": 577, "robust": 341, "non-robust": 812}


def landscape(seed: int = 42, points: int = 1000) -> Curve:
    """Return a rough landscape with a wide valley and a deep, sharp one.

    Noise, in it a plateau at -80 from 200 to 400 and a spike to -200 from 800 to
    820, a tenth of the points raised by 100; smoothed over a width of 10, times 5e-4.

    Args:
        seed: Of the noise, drawn by numpy's legacy generator as in the original.
        points: Length T of the landscape, at least 820.

    Returns:
        Heights, (T,).
    """
    draws = np.random.RandomState(seed)
    f = -10 * draws.random_sample(points)
    f[200:400], f[800:820] = -80, -200
    f[draws.random_sample(points) < 0.1] += 100
    return 5e-4 * np.convolve(f, gaussian(100, 10), mode="same")


def negative_local_entropy(f: Curve, gamma: float) -> Curve:
    r"""Return :math:`-F(x) = -\log \sum_{x'} \exp(-f(x') - \gamma (x - x')^2 / 2)`.

    Args:
        f: Heights at x = 0, 1, ..., (T,).
        gamma: Scope, above 0; the smaller, the wider the surroundings that count.

    Returns:
        Values at the same x, (T,).
    """
    above(0, gammas=gamma)
    x = np.arange(len(f))
    distance = x[:, None] - x
    return -logsumexp(-f - 0.5 * gamma * distance**2, axis=1)


class Scoping:
    """How local entropy scopes a wide valley out: the cartoon of Entropy-SGD's paper.

    Args:
        gammas: Scopes, each above 0, the one with the marks first.
        seed: Of the landscape's noise.
        output: The picture.

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838, figure 2 and its program.
    """

    def __init__(
        self,
        gammas: tuple[float, ...] = (1e-3, 5e-5),
        seed: int = 42,
        output: str = "scoping.png",
    ):
        if not gammas:
            raise ValueError("gammas must hold at least one scope")
        self.output = Path(output)
        self.f = landscape(seed)
        entropies = {gamma: negative_local_entropy(self.f, gamma) for gamma in gammas}
        self.curves = {gamma: v - v.min() for gamma, v in entropies.items()}

    def figure(self) -> Figure:
        """Draw the landscape, raised by 1, and -F less its minimum."""
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.f + 1, color="black", linewidth=1, label="landscape f, plus 1")
        for (gamma, values), colour in zip(self.curves.items(), cycle(COLOURS)):
            label = f"negative local entropy, γ = {gamma:g}"
            axes.plot(values, color=colour, linewidth=1.8, label=label)
        first = next(iter(self.curves.values()))
        for name, x in MARKS.items():
            axes.plot(x, first[x], "o", color=COLOURS[0], markeredgecolor="black")
            text = f"$x_{{\\mathrm{{{name.replace('-', '{-}')}}}}}$"
            place: dict[str, Any] = {"xytext": (8, -12), "textcoords": "offset points"}
            axes.annotate(text, (x, first[x]), fontsize=13, **place)
        axes.set(xlabel="x", ylabel="height", xlim=(0, len(self.f) - 1))
        axes.legend(loc="upper right", frameon=False)
        axes.grid(alpha=0.25)
        return figure


def scoping(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    parser = Parser(
        prog=f"{PROGRAM} scoping",
        description="A picture: a landscape of one dimension and its local entropy.",
    )
    parser.arguments = args
    parser.add_class_arguments(Scoping)
    try:
        parsed = parser.instantiate_classes(parser.parse_args(list(args)))
        study = Scoping(**vars(parsed))
        study.output.parent.mkdir(parents=True, exist_ok=True)
        study.figure().savefig(study.output, dpi=120)
    except (ValueError, OSError) as error:
        fail(one_line(str(error)))
    for gamma, values in study.curves.items():
        print(f"γ = {gamma:g}: -F is lowest at x = {values.argmin()}")
    print(f"f is lowest at x = {study.f.argmin()}\npicture: {study.output}")
