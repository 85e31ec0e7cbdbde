r"""Least squares by mini-batch SGD, from sampled batches to a recursion over modes.

Legend: K, kernel (N, N) with K/N's largest eigenvalue 1; k = K/N; d, output error
f - y; v, its velocity; C = E[d dᵀ], J = E[d vᵀ], P = E[v vᵀ], second moments;
α, β, b, γ, τ1, τ2, λ, c: see `lightning_ecd.theory.generating`; U, eigenvectors of K.

Every function takes a state, makes the steps of a schedule that follow it, and returns
the state after them and the losses, |d|²/(2N) or its mean. States are tuples of
tensors: saved and given back, they go on to the bit.

1. `sampled`: the linearised problem with mini-batches, any number of runs at once.
2. `averaged`: the exact mean over all mini-batches; `averaged_modes`: the same in the
   eigenbasis, whole or for the first modes only.
3. `spectral_diagonal`: the second moments of the modes alone.

The network itself is trained by `modules.Regression`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightning_ecd.theory.generating import Real, real
from lightning_ecd.theory.schedules import Schedule
from lightning_ecd.theory.spectrum import Spectrum

#: Step number -> samples of the mini-batches of all runs, (R, b), each distinct.
Draw = Callable[[int], Tensor]
#: Bytes of kernel rows up to which a copy of them is worth its time.
_COPIED = 2**20


class Sampled(NamedTuple):
    """Where runs with sampled batches are.

    Attributes:
        step: Steps made.
        d: Output errors, shape (R, N).
        v: Velocities, shape (R, N).
    """

    step: int
    d: Tensor
    v: Tensor

    @classmethod
    def start(cls, d: Tensor, runs: int = 1) -> "Sampled":
        """Return runs that all begin at d, (N,)."""
        rows = d.expand(runs, -1).clone()
        return cls(0, rows, torch.zeros_like(rows))


def sampled(
    K: Tensor,
    state: Sampled,
    schedule: Schedule,
    draw: Draw,
    steps: int,
    form: Literal["v", "p"] = "v",
) -> tuple[Sampled, Tensor]:
    r"""Return runs of SGD in function space after some steps, and their losses.

    .. math::
        g = K_{:,B}\, d_B / b, \qquad v \leftarrow \beta v - \alpha g, \qquad
        d \leftarrow d + v

    Args:
        K: Symmetric, shape (N, N).
        state: Before.
        schedule: Of all steps.
        draw: Gives the mini-batches.
        steps: How many to make.
        form: "p": :math:`p \leftarrow \beta p + g`, :math:`d \leftarrow d - \alpha p`
            as in torch and the released code: the same for a constant α, another
            momentum where α changes.

    Returns:
        The state, and losses (steps, R) after every step.
    """
    step, d, v = state
    losses = d.new_empty(steps, len(d))
    for i, (a, b) in enumerate(_rates(schedule, step, steps)):
        g = _gradients(K, d, draw(step + i))
        inner, outer = (-a, 1.0) if form == "v" else (1.0, -a)
        v = (b * v).add_(g, alpha=inner)
        d = d.add(v, alpha=outer)
        losses[i] = _loss(d)
    return Sampled(step + steps, d, v), losses


class SampledAdam(NamedTuple):
    """Where runs of Adam in function space are.

    Attributes:
        step: Steps made.
        d: Output errors, shape (R, N).
        p: Mean gradients, shape (R, N).
        w: Mean squared gradients, shape (R, N).
    """

    step: int
    d: Tensor
    p: Tensor
    w: Tensor

    @classmethod
    def start(cls, d: Tensor, runs: int = 1) -> "SampledAdam":
        """Return runs that all begin at d, (N,)."""
        rows = d.expand(runs, -1).clone()
        return cls(0, rows, torch.zeros_like(rows), torch.zeros_like(rows))


def sampled_adam(
    K: Tensor,
    state: SampledAdam,
    schedule: Schedule,
    draw: Draw,
    steps: int,
    betas: tuple[float, float] = (0.9, 0.999),
    reference: bool = False,
) -> tuple[SampledAdam, Tensor]:
    """Return runs of Adam on the outputs after some steps, and their losses.

    Args:
        K: See `sampled`.
        state: Before.
        schedule: Its α and b count.
        draw: Gives the mini-batches.
        steps: How many to make.
        betas: Of both means.
        reference: Correct the means' bias by one step too many, as the released code.
    """
    step, d, p, w = state
    b1, b2 = betas
    losses = d.new_empty(steps, len(d))
    for i, (a, _) in enumerate(_rates(schedule, step, steps)):
        g = _gradients(K, d, draw(step + i))
        p = b1 * p + (1 - b1) * g
        w = b2 * w + (1 - b2) * g * g
        t = step + i + 1 + reference
        d = d - a * (p / (1 - b1**t)) / ((w / (1 - b2**t)).sqrt() + 1e-8)
        losses[i] = _loss(d)
    return SampledAdam(step + steps, d, p, w), losses


def _gradients(K: Tensor, d: Tensor, batch: Tensor) -> Tensor:
    """Return K[:, B] d[B] / b of every run, (R, N), by rows: K is symmetric."""
    batch = batch.to(K.device)
    runs, b = batch.shape
    e = d.gather(1, batch) / b
    if runs == 1 and b * K[0].nbytes <= _COPIED:
        return e @ K.index_select(0, batch[0])
    return embedding_bag(batch, K, per_sample_weights=e, mode="sum")


def _loss(d: Tensor) -> Tensor:
    return torch.linalg.vecdot(d, d) / (2 * d.shape[-1])


def _rates(schedule: Schedule, step: int, steps: int) -> list[tuple[float, float]]:
    """Return (α, β) of the steps to come."""
    if step + steps > schedule.steps:
        raise ValueError(
            f"the schedule has {schedule.steps} steps, {step + steps} are to be made"
        )
    span = slice(step, step + steps)
    alpha, beta = schedule.alpha[span].tolist(), schedule.beta[span].tolist()
    return list(zip(alpha, beta, strict=True))


class Averaged(NamedTuple):
    """Second moments over all mini-batches.

    Attributes:
        step: Steps made.
        C: E[d dᵀ], shape (N, N).
        J: E[d vᵀ], shape (N, N).
        P: E[v vᵀ], shape (N, N).
    """

    step: int
    C: Tensor
    J: Tensor
    P: Tensor

    @classmethod
    def start(cls, d: Tensor) -> "Averaged":
        """Return the moments at d, (N,)."""
        C = torch.outer(d, d)
        return cls(0, C, torch.zeros_like(C), torch.zeros_like(C))


def averaged(
    K: Tensor, state: Averaged, schedule: Schedule, steps: int
) -> tuple[Averaged, Tensor]:
    r"""Return the exact second moments after some steps, and the mean losses.

    .. math::
        P' &= \alpha^2 k[(1-\gamma) C + \gamma N\,\mathrm{diag}\,C]k
            - \alpha\beta (kJ + (kJ)^T) + \beta^2 P \\
        C' &= C - \alpha(kC + Ck) + \beta(J + J^T) + P' \\
        J' &= \beta J - \alpha Ck + P'

    C and P are made symmetric at every step: what rounding makes antisymmetric would
    grow. Three products of matrices a step; see `averaged_modes` for two.

    Args:
        K: Symmetric, shape (N, N).
        state: Before.
        schedule: Of all steps.
        steps: How many to make.

    Returns:
        The state, and losses (steps,) after every step.
    """
    N = len(K)
    step, C, J, P = state
    gammas = schedule.gamma(N)[step : step + steps].tolist()
    losses = C.new_empty(steps)
    rates = _rates(schedule, step, steps)
    for i, ((a, b), gamma) in enumerate(zip(rates, gammas, strict=True)):
        # as few matrices at once as can be: each may be a large part of what fits
        kC = (K @ C).div_(N)
        noisy = (K * (gamma * C.diagonal())).add_(kC, alpha=1 - gamma)
        P = torch.addmm(P, noisy, K, beta=b * b, alpha=a * a / N)
        del noisy
        if b:
            P = _plus_both(P, (K @ J).div_(N), -a * b)
        P = _symmetric(P)
        # the transpose of kC is Ck, as C is symmetric to the bit
        C = _symmetric(_plus_both(_plus_both(C, kC, -a), J, b).add_(P))
        J = (b * J).add_(kC.T, alpha=-a).add_(P)
        losses[i] = C.trace() / (2 * N)
    return Averaged(step + steps, C, J, P), losses


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.T).div_(2)


def _plus_both(A: Tensor, B: Tensor, factor: float) -> Tensor:
    """Return A + factor (B + Bᵀ)."""
    return A.add(B, alpha=factor).add_(B.T, alpha=factor)


class AveragedModes(NamedTuple):
    """Second moments of the first modes, and the means of all.

    Attributes:
        step: Steps made.
        C: UᵀE[d dᵀ]U of the first r modes, shape (r, r).
        J: The same of d and v.
        P: The same of v.
        d: UᵀE[d], shape (N,).
        v: UᵀE[v], shape (N,).
    """

    step: int
    C: Tensor
    J: Tensor
    P: Tensor
    d: Tensor
    v: Tensor

    @classmethod
    def start(cls, U: Tensor, d: Tensor, rank: int | None = None) -> "AveragedModes":
        """Return the moments at d, (N,), for eigenvectors U (N, N); rank: r."""
        modes = U.T @ d
        first = modes[:rank]
        C = torch.outer(first, first)
        zero = torch.zeros_like(C)
        return cls(0, C, zero, zero, modes, torch.zeros_like(modes))


def averaged_modes(
    eigenvalues: Tensor,
    U: Tensor,
    state: AveragedModes,
    schedule: Schedule,
    steps: int,
) -> tuple[AveragedModes, Tensor]:
    r"""Return what `averaged` does, in the eigenbasis.

    There k is diagonal, and only the noise mixes modes: with D = diag(UCUᵀ), two
    products a step. With rank r < N the others, whose noise is proportional to their
    small eigenvalues squared, follow their means, which D includes.

    Args:
        eigenvalues: λ of K/N, shape (N,), largest first.
        U: Eigenvectors in columns, shape (N, N).
        state: Before.
        schedule: Of all steps.
        steps: How many to make.

    Returns:
        The state, and losses (steps,) after every step.
    """
    step, C, J, P, d, v = state
    N, r = len(U), len(C)
    whole = eigenvalues
    lam = whole[:r]
    first, rest = U[:, :r].contiguous(), U[:, r:]
    gammas = schedule.gamma(N)[step : step + steps].tolist()
    losses = C.new_empty(steps)
    rates = _rates(schedule, step, steps)
    for i, ((a, b), gamma) in enumerate(zip(rates, gammas, strict=True)):
        D = ((first @ C) * first).sum(1)
        if r < N:
            tail = rest @ d[r:]
            D = D + 2 * (first @ d[:r]) * tail + tail * tail
        noise = first.T @ (D[:, None] * first)
        M = noise.mul_(gamma * N).add_(C, alpha=1 - gamma)
        P = (b * b * P).addcmul_(torch.outer(a * lam, a * lam), M)
        del noise, M
        if b:
            P = _plus_both(P, lam[:, None] * J, -a * b)
        P = _symmetric(P)
        Ck = C * lam
        C = _symmetric(_plus_both(_plus_both(C, Ck, -a), J, b).add_(P))
        J = (b * J).add_(Ck, alpha=-a).add_(P)
        v = b * v - a * whole * d
        d = d + v
        losses[i] = (C.trace() + d[r:].square().sum()) / (2 * N)
    return AveragedModes(step + steps, C, J, P, d, v), losses


class Modes(NamedTuple):
    """Second moments of every mode, (..., M); see `Averaged`."""

    step: int
    C: Tensor
    J: Tensor
    P: Tensor

    @classmethod
    def start(cls, spectrum: Spectrum, *shape: int) -> "Modes":
        """Return the moments before the first step, of settings of a shape."""
        C = spectrum.coefficients.expand(*shape, -1).clone()
        return cls(0, C, torch.zeros_like(C), torch.zeros_like(C))


def spectral_diagonal(
    spectrum: Spectrum,
    state: Modes,
    schedule: Schedule,
    steps: int,
    tau1: Real = 1.0,
    tau2: Real = 1.0,
    whole: int | None = None,
) -> tuple[Modes, Tensor]:
    r"""Return the second moments of the modes after some steps, and the mean losses.

    .. math::
        N_k &= \gamma (\alpha\lambda_k)^2 (\tau_1 \textstyle\sum_l C_l - \tau_2 C_k) \\
        P'_k &= (\alpha\lambda_k)^2 C_k - 2\alpha\beta\lambda_k J_k + \beta^2 P_k
            + N_k \\
        C'_k &= C_k - 2\alpha\lambda_k C_k + 2\beta J_k + P'_k, \qquad
        J'_k = \beta J_k - \alpha\lambda_k C_k + P'_k

    Exact for τ = 1 on translation-invariant data and for τ = -1 on Gaussian features.

    Args:
        spectrum: The problem.
        state: Before; its first dimensions are those of settings side by side.
        schedule: Of all steps; arrays (T,) or (T, P) for P settings.
        steps: How many to make.
        tau1: τ1, a number or (P,).
        tau2: τ2, likewise.
        whole: Samples that the mini-batches come from; None: those of the spectrum,
            which may have been estimated from some of them.

    Returns:
        The state, and losses (steps, ...) after every step.
    """
    step, C, J, P = state
    _rates(schedule, step, steps)
    span = slice(step, step + steps)
    gammas = schedule.gamma(whole or spectrum.samples)
    courses = [x[span] for x in (schedule.alpha, schedule.beta, gammas)]
    same = all(bool((x == x[:1]).all()) for x in courses)
    columns = [x.unsqueeze(-1).to(C.device) for x in courses]
    t1, t2 = (real(t, C).unsqueeze(-1) for t in (tau1, tau2))
    lam, m = spectrum.eigenvalues, spectrum.counts
    losses = C.new_empty(steps, *C.shape[:-1])
    for i in range(steps):
        if not (same and i):
            a, b, gamma = (x[i] for x in columns)
            al = a * lam
            square = al * al
            kept, turned, slowed = square * (1 - gamma * t2), 2 * b * al, b * b
            noise = gamma * t1 * square * m
        P = kept * C - turned * J + slowed * P + noise * C.sum(-1, keepdim=True)
        C, J = C - 2 * al * C + 2 * b * J + P, b * J - al * C + P
        losses[i] = C.sum(-1) / (2 * spectrum.samples)
    return Modes(step + steps, C, J, P), losses
