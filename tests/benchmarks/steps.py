"""Cost of an optimizer's `step` beside torch's SGD with momentum."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision

from lightning_ecd.optimizers import BBI, ECDq1, ECDSep, ECDSepLeapfrog, HeavyBall
from modules import LeNet
from tests.benchmarks.timing import interleaved

#: Networks by name, and the calls per timing.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "LeNet 28,938": (LeNet, 20),
    "LeNet 201,528": (lambda: LeNet(outputs=120), 20),
    "ResNet-18 62 tensors": (lambda: torchvision.models.resnet18(num_classes=10), 1),
}
BASE = "SGD foreach"
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    BASE: (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    "SGD fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "HeavyBall": (HeavyBall, {}),
    "BBI": (BBI, {"extra_energy": 1.0}),
    "ECDSep nu=0": (ECDSep, {"extra_energy": 1.0, "nu": 0.0}),
    "ECDSep nu>0": (ECDSep, {"extra_energy": 1.0, "nu": 1e-5}),
    "ECDSepLeapfrog nu>0": (ECDSepLeapfrog, {"extra_energy": 1.0, "nu": 1e-5}),
    "ECDq1 nu=0": (ECDq1, {"nu": 0.0, "f_min": -1.0}),
}
#: Bars: optimizer and network -> highest ratio.
BARS = {
    ("BBI", "LeNet 28,938"): 0.95,
    ("BBI", "LeNet 201,528"): 0.4,
    ("BBI", "ResNet-18 62 tensors"): 0.6,
    ("ECDSep nu=0", "LeNet 28,938"): 1.05,
    ("ECDSep nu=0", "LeNet 201,528"): 0.5,
    ("ECDSep nu=0", "ResNet-18 62 tensors"): 0.75,
    ("ECDSep nu>0", "ResNet-18 62 tensors"): 2.5,
}


def step_of(optimizer: str, network: str) -> Callable[[], Any]:
    """Return one whole step with a trivial closure, on fixed gradients."""
    cls, settings = OPTIMIZERS[optimizer]
    torch.manual_seed(0)
    params = [torch.nn.Parameter(p.data) for p in NETWORKS[network][0]().parameters()]
    built = cls(params, lr=1e-4, **settings)
    loss = torch.tensor(2.3)
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return lambda: built.step(lambda: loss)


def ratios(network: str, rounds: int = 101) -> dict[str, float]:
    """Return every optimizer's median time over that of SGD foreach."""
    runs = {name: step_of(name, network) for name in OPTIMIZERS}
    rounds = rounds if NETWORKS[network][1] > 1 else max(rounds // 4, 5)
    times = interleaved(runs, rounds=rounds, inner=NETWORKS[network][1])
    return {name: seconds / times[BASE] for name, seconds in times.items()}
