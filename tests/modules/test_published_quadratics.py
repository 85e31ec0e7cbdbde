"""Long: quadratics as measured for the specification, and no divergence."""

from functools import partial

import pytest
import torch

from datamodules import Quadratics
from lightning_ecd.optimizers import Learned
from lightning_ecd.unrolling import FlatProblem
from modules import Quadratic
from modules.curves import summary
from modules.evaluation import Swarm

SGD = partial(torch.optim.SGD, momentum=0.9)
#: Mean losses at step 99 over 20,000 other problems, and their standard errors, by an
#: independent program.
MEASURED = {
    "Adam 0.1": (partial(torch.optim.Adam, lr=0.1), 0.451, 0.007),
    "Adam 0.3": (partial(torch.optim.Adam, lr=0.3), 0.340, 0.006),
    "RMSprop": (partial(torch.optim.RMSprop, lr=0.03), 0.680, 0.008),
    "SGD 0.01": (partial(SGD, lr=0.01), 0.418, 0.006),
    "SGD 0.02": (partial(SGD, lr=0.02), 0.305, 0.005),
    "NAG": (partial(SGD, lr=0.01, nesterov=True), 0.417, 0.006),
    "GD": (partial(torch.optim.SGD, lr=0.01), 1.075, 0.010),
}
#: What the meta-trained rules are to reach.
TARGETS = {"lstm_quadratics": 0.20, "phnn_quadratics": 0.30, "hnn_quadratics": 0.49}


def outcome(make, runs=20000):
    data = Quadratics(window=100, test_runs=runs, eval_runs=runs)
    (window,) = data.test_dataloader()
    problem, batch = FlatProblem(Quadratic()), window.batch_of(0)
    swarm = Swarm(make, problem, torch.zeros(runs, 10))
    return summary(torch.stack([swarm.step(batch) for _ in range(100)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_hand_designed_optimizers_reach_the_measured_losses(name):
    make, mean, error = MEASURED[name]
    found = outcome(make)
    both = (error**2 + found["final_error"] ** 2) ** 0.5
    assert abs(found["final"] - mean) < 4 * both
    assert found["diverged"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_shipped_rules_reach_their_targets_and_never_diverge(name):
    found = outcome(partial(Learned, checkpoint=name))
    assert found["final"] < TARGETS[name]
    assert found["diverged"] == 0
