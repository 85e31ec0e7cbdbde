"""The theory's fast paths beside straightforward ones."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_ecd.theory import (
    Averaged,
    AveragedModes,
    Sampled,
    averaged_modes,
    from_kernel,
    from_power_law,
    layer_kernel,
    sampled,
    schedule,
    shallow_kernel,
    synthetic_kernel,
)
from lightning_ecd.theory.studies import loss_map
from modules import LeNet5, ShallowNet
from tests.benchmarks.timing import interleaved

#: Name -> the least ratio.
BARS = {
    "tangent kernel, one hidden layer": 100.0,
    "tangent kernel, LeNet-5": 4.0,
    "linearised step": 10.0,
    "averaged step, exact": 1.5,
    "averaged step, 100 modes": 100.0,
}
#: Seconds that a map of 5000 points may take.
MAP_BAR = 5.0


def map_seconds() -> float:
    """Return the time of 5000 losses after 10,000 steps, N = 1000."""
    spectrum = from_power_law(1.5, 3.0, 1000)
    alpha = torch.linspace(0, 4, 100, dtype=torch.float64)
    beta = torch.linspace(-1, 1, 50, dtype=torch.float64)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        loss_map(spectrum, alpha, beta, 10, 10_000)
        times.append(time.perf_counter() - start)
    return median(times)


def jacobian_product(network: nn.Module, X: Tensor) -> Tensor:
    """Return the kernel as the product of the whole Jacobian, by torch.func."""
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def output(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(network, weights, (x[None],))[0, 0]

    with torch.no_grad():
        J = vmap(grad(output), (None, 0))(weights, X)
        flat = torch.cat([part.flatten(1) for part in J.values()], 1)
        return flat @ flat.T


def five_products(K: Tensor, state: Averaged, rates: tuple[float, ...]) -> Averaged:
    """Return the moments after a step, as the released code multiplies."""
    a, b, gamma = rates
    N = len(K)
    k = K / N
    C, J, P = state.C, state.J, state.P
    noise = gamma * N * (k @ torch.diag(C.diagonal())) @ k
    P = a**2 * ((1 - gamma) * k @ C @ k + noise) + b**2 * P
    kJ, kC = k @ J, k @ C
    P = P - a * b * (kJ + kJ.T)
    C = C - a * (kC + kC.T) + b * (J + J.T) + P
    return Averaged(state.step + 1, C, b * J - a * kC.T + P, P)


def gathered_step(K: Tensor, d: Tensor, v: Tensor, batch: Tensor) -> Tensor:
    """Return the loss after a step whose kernel columns are gathered."""
    g = K[:, batch] @ d[batch] / len(batch)
    v = 0.3 * v - 0.5 * g
    return 0.5 * (d + v).square().mean()


def _sides(name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the straightforward side, and ours."""
    torch.manual_seed(0)
    if name == "tangent kernel, one hidden layer":
        network, X = ShallowNet(784, 1000), torch.randn(400, 784)
        W1, b1, W2 = network.first.weight, network.first.bias, network.last.weight
        return (
            lambda: jacobian_product(network, X),
            lambda: shallow_kernel(X, W1, b1, W2),
        )
    if name == "tangent kernel, LeNet-5":
        lenet, images = LeNet5(), torch.randn(1000, 1, 28, 28)
        return lambda: jacobian_product(lenet, images), lambda: layer_kernel(
            lenet, images
        )
    if name == "linearised step":
        N = 3000
        A = torch.randn(N, 50, dtype=torch.float64)
        K, d = A @ A.T, torch.randn(N, dtype=torch.float64)
        steps = 100
        rates = schedule(steps, 0.5, 0.3, 10)
        batches = [torch.randperm(N)[None, :10] for _ in range(steps)]

        def gather() -> None:
            for batch in batches:
                gathered_step(K, d, d, batch[0])

        return gather, lambda: sampled(
            K, Sampled.start(d), rates, batches.__getitem__, steps
        )
    K, d = synthetic_kernel(from_power_law(1.5, 0.75, 1000))
    spectrum, U = from_kernel(K, d)
    rates, whole = schedule(10, 0.5, 0.3, 10), Averaged.start(d)
    gamma = rates.gamma(1000)[0].item()

    def plain() -> Averaged:
        return five_products(K, whole, (0.5, 0.3, gamma))

    if name == "averaged step, exact":
        exact = AveragedModes.start(U, d)
        return plain, lambda: averaged_modes(spectrum.eigenvalues, U, exact, rates, 1)
    few = AveragedModes.start(U, d, 100)
    return plain, lambda: averaged_modes(spectrum.eigenvalues, U, few, rates, 10)


def speedup(name: str, rounds: int = 5) -> float:
    """Return how many times faster our side is."""
    plain, ours = _sides(name)
    steps = 10 if name == "averaged step, 100 modes" else 1
    found = interleaved({"plain": plain, "ours": ours}, rounds=rounds)
    return steps * found["plain"] / found["ours"]
