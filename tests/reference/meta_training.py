"""Meta-training once more: the graph of the whole window, one task at a time.

Written from the published mechanism and nothing else. ``step(weights, grad, state)``
returns (update, state); ``weights`` is a dict of tensors, ``state`` a tensor or a tuple
of tensors, ``grad`` and the update are flat (n,).

Sources: Andrychowicz et al., NeurIPS 2016, arXiv 1606.04474; Timofeev et al., arXiv
2111.00565, and the released code.
"""

import math

import torch


def features(x, factor):
    """Return the two features (n, 2) of x (n,), differentiable, signs constant."""
    large = torch.stack([(x.abs() + 1e-8).log() / factor, x.sign()], dim=1)
    small = torch.stack([-torch.ones_like(x), math.exp(factor) * x], dim=1)
    return torch.where((x.abs() >= math.exp(-factor))[:, None], large, small)


def inputs(x, factor):
    """Return x as a column, or its two features."""
    return x[:, None] if factor is None else features(x, factor)


def hnn_step(
    weights, grad, state, factor=None, norm=False, sizes=None, state_grad=False
):
    """Return update and next state (n,) of the port-Hamiltonian network.

    Args:
        weights: Tensors by name.
        grad: Gradient (n,); the caller detaches it.
        state: State (n,).
        factor: P of the preprocessing, None for none.
        norm: Whether the state is divided by its norm over each tensor.
        sizes: Numbers of entries of the tensors, None for one tensor.
        state_grad: Whether features of the state carry a gradient. Without
            preprocessing the state always does.
    """
    w = weights
    if factor is not None and not state_grad:
        state = state.detach()
    q, p = inputs(grad, factor), inputs(state, factor)
    d = q.shape[1]

    def net(name):
        hidden = q @ w[f"gde.{name}.0.weight"].T + w[f"gde.{name}.0.bias"]
        hidden = torch.relu(hidden)
        return hidden @ w[f"gde.{name}.2.weight"].T + w[f"gde.{name}.2.bias"]

    a = net("v")
    damping = torch.cat([a, p], dim=1) @ w["gde.D.weight"].T
    hq = p - damping[:, :d]
    force = -a - damping[:, d:] + net("g")
    hp = force @ (w["gde.L.weight"] @ w["gde.L.weight"].T)
    update = torch.cat([hq, q], dim=1) @ w["output.weight"].T
    new = torch.cat([hq, hp], dim=1) @ w["output1.weight"].T + w["output1.bias"]
    new = new[:, 0]
    if norm:
        pieces = new.split([len(new)] if sizes is None else list(sizes))
        new = torch.cat([s / (s * s).sum().sqrt() for s in pieces])
    return update[:, 0], new


def lstm_step(weights, grad, state, factor=None):
    """Return update (n,) and next state (h1, c1, h2, c2) of two LSTM cells."""
    w = weights

    def cell(name, x, h, c):
        gates = x @ w[f"{name}.weight_ih"].T + w[f"{name}.bias_ih"]
        gates = gates + h @ w[f"{name}.weight_hh"].T + w[f"{name}.bias_hh"]
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    h1, c1, h2, c2 = state
    h1, c1 = cell("recurs", inputs(grad, factor), h1, c1)
    h2, c2 = cell("recurs2", h1, h2, c2)
    update = h2 @ w["output.weight"].T + w["output.bias"]
    return update[:, 0], (h1, c1, h2, c2)


def detached(state):
    """Return tensors, alone or within tuples and dictionaries, cut from the graph."""
    if torch.is_tensor(state):
        return state.detach()
    if isinstance(state, dict):
        return {name: detached(part) for name, part in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(detached(part) for part in state)
    return state


def each_window(
    step,
    weights,
    initial_state,
    theta,
    loss,
    batches,
    window,
    lr,
    second_order=False,
    score_last=False,
    faithful=False,
):
    """Yield (window loss sum, meta-gradients, theta, state) at the end of each window.

    The tensors of `weights` are read at the start of every window, so that they may be
    moved in place between two. Arguments: see :func:`windows`.
    """
    if faithful and second_order:
        raise ValueError("the original has no second derivatives")
    batches, state = list(batches), initial_state
    needed = window + 1 if score_last else window
    first = 0
    while first + needed <= len(batches):
        phi = {k: w.detach().clone().requires_grad_() for k, w in weights.items()}
        theta = theta.detach().clone().requires_grad_()
        state = detached(state)
        total = 0.0
        for t in range(window):
            value = loss(theta, batches[first + t])
            if t > 0 or not score_last:
                total = total + value
            if faithful:
                theta.retain_grad()
                value.backward(retain_graph=True)
                grad = theta.grad
            else:
                (grad,) = torch.autograd.grad(
                    value, theta, retain_graph=True, create_graph=second_order
                )
            if not second_order:
                grad = grad.detach().clone()  # .grad is added to in place later
            update, state = step(phi, grad, state)
            theta = theta + lr * update
        if score_last:
            total = total + loss(theta, batches[first + window])
        if faithful:
            for w in phi.values():
                w.grad = None
            total.backward()
            grads = [w.grad for w in phi.values()]
        else:
            grads = torch.autograd.grad(total, list(phi.values()), allow_unused=True)
        result = {}
        for (name, w), g in zip(phi.items(), grads, strict=True):
            result[name] = torch.zeros_like(w) if g is None else g.detach()
        yield total.item(), result, detached(theta), detached(state)
        first += window


def windows(
    step,
    weights,
    initial_state,
    theta,
    loss,
    batches,
    window,
    lr,
    second_order=False,
    score_last=False,
    faithful=False,
):
    """Return [(window loss sum, dict of meta-gradients)] of one run, weights fixed.

    Absent meta-gradients are zeros. Steps that fill no window have no entry.

    Args:
        step: The rule.
        weights: Tensors by name.
        initial_state: State at the start of the run.
        theta: Parameters (n,) at the start of the run.
        loss: Function of theta and a batch.
        batches: One batch per step.
        window: Steps per window; theta and state go on, detached, to the next.
        lr: Factor of the update.
        second_order: Whether the derivative of the gradient is kept.
        score_last: Whether the loss after the last update, on the batch that follows,
            is scored in place of the loss at the start of the window. A window
            without a batch that follows has no entry.
        faithful: Whether every inner gradient goes through the graph of the whole
            window, down to the weights, as in the released code.
    """
    run = each_window(
        step,
        weights,
        initial_state,
        theta,
        loss,
        batches,
        window,
        lr,
        second_order,
        score_last,
        faithful,
    )
    return [(total, grads) for total, grads, _, _ in run]


def trained(step, weights, runs, window, lr, meta_lr, **options):
    """Return the weights after one Adam step per window, its moments kept over runs.

    Args:
        step: The rule.
        weights: Tensors by name, not changed.
        runs: List of (theta, initial state, loss, batches).
        window: Steps per window.
        lr: Factor of the update.
        meta_lr: Learning rate of Adam.
        **options: second_order, score_last, faithful of :func:`windows`.
    """
    weights = {k: w.detach().clone().requires_grad_() for k, w in weights.items()}
    adam = torch.optim.Adam(list(weights.values()), lr=meta_lr)
    for theta, state, loss, batches in runs:
        run = each_window(
            step, weights, state, theta, loss, batches, window, lr, **options
        )
        for _, grads, _, _ in run:
            for name, w in weights.items():
                w.grad = grads[name].clone()
            adam.step()
    return {k: w.detach().clone() for k, w in weights.items()}
