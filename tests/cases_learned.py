"""Arguments of `Learned` for the generic tests."""

import torch

from lightning_ecd.rules import HNNRule, PortHamiltonianRule, SmallFCRule
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


def signs():
    """Return a rule on Adafactor's features whose update is the normalised -g."""
    rule = SmallFCRule(hidden=4, step_mult=1.0)
    network = rule.network
    with torch.no_grad():
        for w in rule.parameters():
            w.zero_()
        network["input"].weight[0, 0], network["input"].weight[1, 0] = 1.0, -1.0
        network["linear_0"].weight[:] = torch.eye(4)
        network["output"].weight[0, 0], network["output"].weight[0, 1] = 1.0, -1.0
    return rule


LEARNED = {
    "Learned": Case(
        {
            "passive": {"rule": passive(hidden=4), "lr": 0.005, "weight_decay": 0.0},
            "shipped": {"checkpoint": "phnn_quadratics", "lr": 0.005},
            "lstm": {"checkpoint": "lstm_quadratics", "lr": 0.3},
            "hnn": {"rule": descending(), "lr": 0.03},
            "small_fc": {"rule": signs(), "lr": 0.005},
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
