"""The exploring step: every body does the arithmetic of the plain loop."""

import pytest
import torch

from lightning_ecd.kernels import Exploration
from tests.kernels.bodies import (
    INTERPRETED,
    OFFSET,
    SEED,
    STEP,
    bodies,
    build,
    close,
    counting,
    dtypes,
    lists,
    vectors,
)
from tests.reference import passes

LENGTHS = (0, 1025) if INTERPRETED else (0, 1, 7, 1023, 1024, 1025, 5000)
OFF = (0.0, 0.0, 0.0)
RULES = {
    "gradient": Exploration(0.1, 0.0, 1.0, False, 0.25, OFF, OFF),
    "langevin": Exploration(0.1, 0.0, 1.0, False, 0.25, OFF, (0.02, 0.3, 0.7)),
    "nesterov": Exploration(0.1, 0.9, 1.0, True, 0.75, OFF, (0.02, 0.3, 0.7)),
    "heavy_ball": Exploration(0.1, 0.8, 0.7, False, 1.0, (0.02, 0.0, 0.0), OFF),
    "inside": Exploration(0.1, 0.9, 1.0, True, 0.5, (0.02, 0.3, 0.7), OFF),
    "quiet": Exploration(0.1, 0.9, 1.0, True, 0.5, (0.0, 0.3, 0.0), (0.02, 0.0, 0.0)),
}


def five(n, dtype, device):
    """Return x, g, c, u, mean."""
    return [*vectors(n, dtype, device), *vectors(n, dtype, device, seed=1)[:2]]


@bodies
@dtypes
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("label", RULES)
def test_an_exploring_step_equals_the_plain_loop(name, dtype, n, label):
    body, device = build(name, dtype)
    x, g, c, u, mean = five(n, dtype, device)
    plain = lists(x, g, c, u, mean)
    z = lists(body.normals(x, SEED, STEP, OFFSET))[0]
    for _ in range(2):  # the same draws
        body.explore(x, g, c, u, mean, RULES[label], (SEED, STEP, OFFSET))
        passes.explore(*plain, RULES[label], z)
    for got, expected in zip((x, g, c, u, mean), plain, strict=True):
        close(got, expected, dtype)


@counting
def test_an_exploring_step_of_parts_draws_as_that_of_the_whole(name):
    body, device = build(name, torch.float64)
    whole = five(1500, torch.float64, device)
    parts = [v.clone() for v in whole]
    body.explore(*whole, RULES["inside"], (SEED, STEP, 0))
    for start, stop in ((0, 700), (700, 701), (701, 1500)):
        cut = [v[start:stop] for v in parts]
        body.explore(*cut, RULES["inside"], (SEED, STEP, start))
    for got, expected in zip(parts, whole, strict=True):
        close(got, expected, torch.float64)
