"""Arguments of `Learned` for the generic tests."""

import torch

from lightning_ecd.rules import HNNRule, PortHamiltonianRule
from tests.case import Case, outside


def passive(**settings):
    """Return a rule that descends untrained: it is passive, near the heavy ball."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return PortHamiltonianRule(**settings)


def descending():
    """Return a port-Hamiltonian rule, as published, whose update is -q."""
    rule = HNNRule(norm=True)
    with torch.no_grad():
        rule.output.weight.copy_(torch.tensor([[0.0, -1.0]]))
    return rule


LEARNED = {
    "Learned": Case(
        {
            "passive": {"rule": passive(hidden=4), "lr": 0.005, "weight_decay": 0.0},
            "shipped": {"checkpoint": "phnn_quadratics", "lr": 0.005},
            "lstm": {"checkpoint": "lstm_quadratics", "lr": 0.3},
            "hnn": {"rule": descending(), "lr": 0.03},
            "decay": {
                "rule": passive(modes=1, integrator="semi_implicit"),
                "lr": 0.005,
                "weight_decay": 1e-2,
            },
        },
        [
            *outside("lr", 0.0, -1.0, float("inf")),
            *outside("weight_decay", -1e-3, float("inf")),
        ],
    ),
}
