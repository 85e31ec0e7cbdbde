"""Sharpness-aware minimization against its transcription and torch's SGD."""

import pytest
import torch

from lightning_ecd.optimizers import ASAM, REGISTRY, SAM
from tests.cases import PROBLEMS, descend, quadratic, start, values
from tests.optimizers.minibatches import deviation
from tests.reference import sharpness

SHARPNESS = {
    "SAM": {"rho": 0.1},
    "ASAM": {"rho": 0.2, "offset": 0.05},
    "LookSAM": {"rho": 0.1, "every": 3, "alpha": 0.6},
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("name", SHARPNESS)
def test_sharpness_equals_the_transcription(name, momentum, problem):
    base = {"lr": 0.02, "momentum": momentum, "weight_decay": 1e-2}
    base["nesterov"] = momentum > 0
    params, copies = start(), [p.detach() for p in start()]
    settings = {"kind": name.lower(), "sgd": base, **SHARPNESS[name]}
    slow = sharpness.Sharpness(copies, settings, [p.dim() > 1 for p in copies])
    fast = REGISTRY[name].cls(params, **base, **SHARPNESS[name])
    assert deviation(fast, slow, copies, params, problem) < 1e-12


def test_asam_scales_what_is_named_a_weight():
    """Named parameters: a vector called weight counts, a matrix called table not."""
    table, weight = start(shapes=[(2, 3), (4,)])
    base = {"lr": 0.02, "momentum": 0.0}
    copies = [table.detach().clone(), weight.detach().clone()]
    settings = {"kind": "asam", "sgd": base, "rho": 0.2, "offset": 0.05}
    slow = sharpness.Sharpness(copies, settings, [False, True])
    fast = ASAM([("table", table), ("weight", weight)], **base, rho=0.2, offset=0.05)
    assert deviation(fast, slow, copies, [table, weight], "quadratic") < 1e-12


def test_sam_of_radius_zero_is_sgd():
    ours, torchs = start(), start()
    settings = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    descend(SAM(ours, rho=0.0, **settings), ours, quadratic, 40)
    descend(torch.optim.SGD(torchs, **settings), torchs, quadratic, 40)
    torch.testing.assert_close(values(ours), values(torchs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", SHARPNESS)
def test_worst_is_the_loss_at_w_plus_e_in_the_steps_that_look(name):
    """On f = w the gradient is 1, so e = ρ; ASAM: T is 1 for what is no weight."""
    w = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = REGISTRY[name].cls([w], lr=0.5, momentum=0.0, rho=0.2)
    reports = []
    for _ in range(7):
        losses = descend(optimizer, [w], lambda params: params[0].sum(), 1)
        reports.append((losses[0], optimizer.info))
    looks = [True] * 7 if name != "LookSAM" else [t % 5 == 0 for t in range(7)]
    for (loss, info), looked in zip(reports, looks, strict=True):
        expected = {"worst": pytest.approx(loss + 0.2)} if looked else {}
        assert info == expected
