"""The loss around a point: noise, sharpness, slices, and how far noisy descent gets."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_ecd.checks import above, at_least
from lightning_ecd.curvature.loss import Loss
from lightning_ecd.curvature.spectrum import mean_and_error
from lightning_ecd.randomness import normals

#: Separate the draws of this file from every other use of a seed.
_NOISE, _DIRECTION, _PROBE = 0x1A2D, 0x1A2E, 0x1A2F


def local_energy(
    loss: Loss, std: float, draws: int = 10, seed: int = 0
) -> tuple[float, float]:
    r"""Return the mean rise of the loss under multiplicative noise, and its error.

    .. math:: E_z[f(x + \sigma\, z \odot x)] - f(x), \qquad z \sim N(0, I)

    Args:
        loss: At its point x.
        std: Relative size of the noise (paper: sigma), above 0.
        draws: Of z.
        seed: Of z; the same draws for every `std`.

    Reference:
        F. Pittorino et al., "Entropic gradient descent algorithms and wide flat
        minima", ICLR 2021, arXiv 2006.07897.
    """
    above(0, std=std)
    at_least(1, draws=draws)
    x = loss.x
    rises = [
        loss.values((x + std * normals(x, seed, _NOISE, i) * x)[None])
        for i in range(draws)
    ]
    return mean_and_error(torch.cat(rises) - loss.value())


def sharpness(loss: Loss, rho: float = 0.05) -> float:
    r"""Return the rise of the loss at SAM's point, :math:`f(x + \rho g/|g|) - f(x)`.

    Args:
        loss: At its point x.
        rho: Distance, above 0.

    Reference:
        P. Foret et al., "Sharpness-aware minimization for efficiently improving
        generalization", ICLR 2021, arXiv 2010.01412.
    """
    above(0, rho=rho)
    g = loss.gradient()
    size = g.norm()
    step = rho * g / size if size > 0 else g
    return (loss.values((loss.x + step)[None])[0] - loss.value()).item()


def gradient_correlation(loss: Loss) -> tuple[float, float]:
    r"""Return the mean cosine of gradients of consecutive batches, and its error.

    Args:
        loss: At its point x, over at least two batches.

    Reference:
        F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural network training in
        low dimensional random bases", NeurIPS 2020, arXiv 2011.04720, whose code
        measures it with frozen weights.
    """
    if len(loss.batches) < 2:
        raise ValueError(f"batches must be at least 2, got {len(loss.batches)}")
    last, cosines = loss.batch_gradient(0), []
    for i in range(1, len(loss.batches)):
        new = loss.batch_gradient(i)
        cosines.append(torch.cosine_similarity(last, new, dim=0))
        last = new
    return mean_and_error(torch.stack(cosines))


def filter_normalized(loss: Loss, seed: int = 0, number: int = 0) -> Tensor:
    r"""Return a random direction, (n,), in which every filter has its weights' norm.

    :math:`d_j \leftarrow d_j |w_j|/|d_j|` for every filter j (row of a matrix), zero
    for biases and normalisation: slices of networks whose layers differ in scale can
    then be compared.

    Args:
        loss: At its point x.
        seed: Of the direction.
        number: Of the direction; different ones are independent.

    Reference:
        H. Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018,
        arXiv 1712.09913.
    """
    parts = []
    for i, p in enumerate(loss.parameters):
        w = p.detach()
        if w.ndim < 2:
            parts.append(torch.zeros_like(w).reshape(-1))
            continue
        d, w = normals(w, seed, _DIRECTION, number, i).flatten(1), w.flatten(1)
        size = w.norm(dim=1, keepdim=True) / d.norm(dim=1, keepdim=True)
        parts.append((d * size).reshape(-1))
    return torch.cat(parts)


def line(loss: Loss, direction: Tensor, places: Tensor) -> Tensor:
    """Return f(x + a d) for every place a, (T,), float64.

    Args:
        loss: At its point x.
        direction: d, (n,); other - x for a slice from x (a = 0) to another point
            (a = 1), such as a second checkpoint.
        places: a, (T,).
    """
    x = loss.x
    return torch.cat([loss.values((x + a * direction)[None]) for a in places.tolist()])


def plane(loss: Loss, first: Tensor, second: Tensor, places: Tensor) -> Tensor:
    """Return f(x + a d1 + b d2), (T, T), float64; rows belong to b.

    Args:
        loss: At its point x.
        first: d1, (n,).
        second: d2, (n,).
        places: Of both a and b, (T,).
    """
    x = loss.x
    rows = []
    for b in places.tolist():
        points = (x + a * first + b * second for a in places.tolist())
        rows.append(torch.cat([loss.values(point[None]) for point in points]))
    return torch.stack(rows)


@dataclass
class Probe:
    """Where noisy descent went: every list has one entry per record.

    Args:
        steps: Steps made.
        distances: From the starting point, |x - x0|.
        losses: Over all samples.
    """

    steps: list[int] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def entropy_probe(
    loss: Loss,
    steps: int = 1000,
    lr: float = 0.1,
    noise: float = 1e-3,
    weight_decay: float = 1e-3,
    every: int = 50,
    seed: int = 0,
) -> Probe:
    r"""Return loss against distance under noisy descent: a valley's width.

    .. math:: x \leftarrow x - \eta \left(\nabla f_b(x) + \lambda x
        + \frac{\epsilon}{\sqrt{\eta}} z\right), \qquad z \sim N(0, I)

    on the batches b of the loss in turn. In a wide valley x gets far at a low loss.

    Args:
        loss: At its starting point, where it is again afterwards.
        steps: To make.
        lr: eta, above 0.
        noise: epsilon, at least 0.
        weight_decay: lambda, at least 0.
        every: Steps between two records.
        seed: Of z.

    Reference:
        `estimate_local_entropy` in the development code of P. Chaudhari et al.,
        "Entropy-SGD", ICLR 2017, arXiv 1611.01838 (200 epochs, lr 0.1, decay 1e-3).
    """
    above(0, lr=lr)
    at_least(0, noise=noise, weight_decay=weight_decay)
    at_least(1, every=every)
    probe = Probe()
    with loss.restored() as start:
        x = start.clone()
        for i in range(steps + 1):
            if i % every == 0 or i == steps:
                probe.steps.append(i)
                probe.distances.append((x - start).norm().item())
                probe.losses.append(loss.value())
            if i == steps:
                break
            g = loss.batch_gradient(i) + weight_decay * x
            x = x - lr * g - lr**0.5 * noise * normals(x, seed, _PROBE, i)
            loss.move(x)
    return probe
