"""The gradient of a window's loss with respect to the weights of a rule."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_ecd.errors import UserError
from lightning_ecd.rules import UpdateRule
from lightning_ecd.unrolling.problem import FlatProblem, Window
from lightning_ecd.unrolling.runs import Runs, Scales, begun, step_numbers, updates

#: Larger gradients drop a run: they would overflow within the rule.
_LARGEST = 1e15


class Truncated(NamedTuple):
    """What a window gives.

    Attributes:
        losses: Before every update, shape (W, B).
        gradients: Of the objective, one for every weight of the rule.
        after: The runs, detached.
        dropped: Runs whose losses or gradients were not finite, or too large: they
            count for nothing.
    """

    losses: Tensor
    gradients: list[Tensor]
    after: Runs
    dropped: int | Tensor


def truncated_gradient(
    rule: UpdateRule,
    problem: FlatProblem,
    window: Window,
    before: Runs | None,
    lr: float,
    like: Tensor,
    *,
    scales: Scales | None = None,
    score_last: bool = True,
    second_order: bool = False,
    recompute: bool = False,
) -> Truncated:
    r"""Return losses of a window and the gradient of their mean, exactly.

    The gradients :math:`g_t = \nabla f(\theta_t)` enter the rule as constants, so that
    with :math:`\theta_t = \theta_0 + \Delta t \sum_{s<t} u_s`

    .. math::
        \frac{d}{d\varphi} \sum_t f(\theta_t)
        = \frac{d}{d\varphi} \sum_t \langle c_t, u_t(\varphi) \rangle, \qquad
        c_t = \Delta t \sum_{s>t} g_s:

    the graph of the rule suffices, that of the problem is never kept. The parameters
    that a rule may look at beside the gradient are constants too.

    Args:
        rule: The rule; its parameters' gradients are returned, not accumulated.
        problem: What it descends on.
        window: The steps; runs may begin in its first one only.
        before: The runs, as the last window returned them; None: all begin.
        lr: Factor of the updates.
        like: Device and dtype of the parameters.
        scales: See `begin`.
        score_last: The loss after the last update, on the mini-batch that follows,
            replaces the one before the first update, which no weight can change:
            all W updates then count. False: as in the released code W - 1 do.
        second_order: Keep the derivative of the gradients, and of the parameters that
            a rule looks at, too: the slope of the losses as functions of the weights;
            needs the whole graph. A run that overflows then takes the gradient of the
            whole window with it.
        recompute: Forget what the rule computed and compute it again: less memory, a
            third more time.

    Returns:
        Losses, gradients of their mean over runs and steps, the runs after the window.

    Raises:
        UserError: If a run begins within the window.

    Reference:
        The objective: M. Andrychowicz et al., arXiv 1606.04474, with all
        :math:`w_t = 1`.
    """
    runs = before
    weights = [w for w in rule.parameters() if w.requires_grad]
    found: list[Tensor] = []
    slopes: list[Tensor] = []
    steps: list[Tensor] = []
    at = step_numbers(window, like)
    sound = torch.ones((), dtype=torch.bool, device=like.device)

    def evaluated(t: int) -> tuple[Tensor, Tensor]:
        """Return losses and gradients; nothing infinite may enter the graph."""
        nonlocal sound
        assert runs is not None
        with torch.set_grad_enabled(second_order):
            losses, g = problem.losses_and_gradients(
                runs.x, window.batch_of(t), runs.scale
            )
            size = g.detach().abs().amax(-1)
            sound = sound & torch.isfinite(losses.detach()) & (size < _LARGEST)
            return losses, torch.where(sound.unsqueeze(-1), g, 0.0)

    for t, numbers in enumerate(window.step):
        if t and (numbers == 0).any():
            raise UserError(
                "runs begin within a window: let data.stagger be false, or "
                "model.estimator be es or pes"
            )
        runs = begun(runs, rule, problem, window, t, like, scales)
        losses, g = evaluated(t)
        inputs = (rule, problem, runs, g, losses.detach(), at[t])
        with torch.enable_grad():
            if recompute:
                u, state = checkpoint(updates, *inputs, use_reentrant=False)
            else:
                u, state = updates(*inputs)
        moved = lr * (u if second_order else u.detach())
        x = torch.where(sound.unsqueeze(-1), runs.x + moved, runs.x)
        runs = Runs(x, state, runs.scale)
        found.append(losses)
        slopes.append(g)
        steps.append(u)
    if score_last:
        losses, g = evaluated(len(window.step))
        scored, tails = [*found[1:], losses], [*slopes[1:], g]
    else:
        scored, tails = found, [*slopes[1:], torch.zeros_like(slopes[0])]
    with torch.enable_grad():
        if second_order:
            per_run = torch.stack(scored).sum(0)
        else:
            ahead = torch.stack(tails).flip(0).cumsum(0).flip(0)  # (W, B, n)
            per_run = lr * (ahead * torch.stack(steps)).sum((0, 2))
        sound = sound & torch.isfinite(per_run.detach())
        objective = torch.where(sound, per_run, 0.0).mean() / len(window.step)
        gradients = torch.autograd.grad(objective, weights, allow_unused=True)
    return Truncated(
        torch.stack(found).detach(),
        [
            torch.zeros_like(w) if g is None else torch.nan_to_num(g, 0.0, 0.0, 0.0)
            for w, g in zip(weights, gradients, strict=True)
        ],
        runs.detached(),  # type: ignore[union-attr]
        (~sound).sum(),
    )
