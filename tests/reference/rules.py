"""Learned update rules once more: per coordinate or per tensor, numpy, float64.

Written from the published descriptions and nothing else. ``weights`` is a dict of
arrays under the interchange names; a matrix has the shape (out, in).

Sources: Andrychowicz et al., NeurIPS 2016, arXiv 1606.04474 (lstm); Timofeev et al.,
arXiv 2111.00565, and the released code (hnn); Metz et al., arXiv 2203.11860
(small_fc); Gonzalez, J. Nonlinear Sci. 1996, for discrete gradients (phnn).
"""

import math

import numpy as np
from scipy.optimize import brentq


def hnn_shapes(d):
    """Return name -> (shape, bound of the uniform start) for features of width d."""
    narrow, wide = 1 / math.sqrt(d), 1 / math.sqrt(2 * d)
    table = {}
    for net in ("g", "v"):
        for layer in (0, 2):
            table[f"gde.{net}.{layer}.weight"] = ((d, d), narrow)
            table[f"gde.{net}.{layer}.bias"] = ((d,), narrow)
    table["gde.D.weight"] = ((2 * d, 2 * d), wide)
    table["gde.L.weight"] = ((d, d), narrow)
    table["gde.L.bias"] = ((d,), narrow)
    table["output.weight"] = ((1, 2 * d), wide)
    table["output1.weight"] = ((1, 2 * d), wide)
    table["output1.bias"] = ((1,), wide)
    return table


def lstm_shapes(d, hidden=20):
    """Return name -> (shape, bound of the uniform start) for d inputs."""
    bound, table = 1 / math.sqrt(hidden), {}
    for cell, inputs in (("recurs", d), ("recurs2", hidden)):
        table[f"{cell}.weight_ih"] = ((4 * hidden, inputs), bound)
        table[f"{cell}.weight_hh"] = ((4 * hidden, hidden), bound)
        table[f"{cell}.bias_ih"] = ((4 * hidden,), bound)
        table[f"{cell}.bias_hh"] = ((4 * hidden,), bound)
    table["output.weight"] = ((1, hidden), bound)
    table["output.bias"] = ((1,), bound)
    return table


def small_fc_shapes(hidden=32):
    """Return name -> (shape, standard deviation of the start; 0 for biases)."""
    table = {}
    layers = (("input", 39, hidden), ("linear_0", hidden, hidden))
    for name, i, o in (*layers, ("output", hidden, 2)):
        table[f"network.{name}.weight"] = ((o, i), 1 / math.sqrt(i))
        table[f"network.{name}.bias"] = ((o,), 0.0)
    return table


def drawn(shapes, seed):
    """Return weights, each uniform within its bound."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-b, b, shape) for name, (shape, b) in shapes.items()}


def features(x, factor=10.0):
    """Return the two features (n, 2) of the numbers (n,)."""
    rows = []
    for value in np.asarray(x, dtype=np.float64).tolist():
        if abs(value) >= math.exp(-factor):
            rows.append(
                [math.log(abs(value) + 1e-8) / factor, math.copysign(1.0, value)]
            )
        else:  # a NaN compares false and comes here
            rows.append([-1.0, math.exp(factor) * value])
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def inputs(x, factor):
    """Return what the network sees of numbers (n,): (n, 1) or, with P, (n, 2)."""
    x = np.asarray(x, dtype=np.float64)
    return x.reshape(-1, 1) if factor is None else features(x, factor)


def hnn(weights, grad, state, factor=None, norm=False, sizes=None):
    """Return update (n,) and next state (n,) of the port-Hamiltonian network.

    Args:
        weights: Arrays by name; gde.L.bias is not read.
        grad: Gradient (n,).
        state: State (n,), zeros at the start.
        factor: P of the preprocessing, None for none.
        norm: Whether the state is divided by its norm over each tensor, no epsilon.
        sizes: Numbers of entries of the tensors, None for one tensor of n.
    """
    w = weights
    qs, ps = inputs(grad, factor), inputs(state, factor)
    d = qs.shape[1]
    inverse_mass = w["gde.L.weight"] @ w["gde.L.weight"].T

    def net(name, x):
        hidden = w[f"gde.{name}.0.weight"] @ x + w[f"gde.{name}.0.bias"]
        hidden = np.where(hidden < 0, 0.0, hidden)
        return w[f"gde.{name}.2.weight"] @ hidden + w[f"gde.{name}.2.bias"]

    updates, states = [], []
    for q, p in zip(qs, ps, strict=True):
        a = net("v", q)
        damping = w["gde.D.weight"] @ np.concatenate([a, p])
        hq = p - damping[:d]
        hp = (-a - damping[d:] + net("g", q)) @ inverse_mass
        updates.append(w["output.weight"][0] @ np.concatenate([hq, q]))
        raw = w["output1.weight"][0] @ np.concatenate([hq, hp])
        states.append(raw + w["output1.bias"][0])
    new, start = np.array(states), 0
    for size in [len(new)] if sizes is None else sizes:
        if norm:
            piece = new[start : start + size]
            length = math.sqrt(sum(s * s for s in piece))
            with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as published
                new[start : start + size] = piece / np.float64(length)
        start += size
    return np.array(updates), new


def sigmoid(x):
    """Return 1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def lstm(weights, grad, state, factor=None):
    """Return update (n,) and next state of two LSTM cells and a linear head.

    Args:
        weights: Arrays by name.
        grad: Gradient (n,).
        state: (h1, c1, h2, c2), each (n, hidden), zeros at the start.
        factor: P of the preprocessing, None for none.
    """
    w = weights

    def cell(name, x, h, c):
        gates = w[f"{name}.weight_ih"] @ x + w[f"{name}.bias_ih"]
        gates = gates + w[f"{name}.weight_hh"] @ h + w[f"{name}.bias_hh"]
        size = len(h)
        i, f, g, o = (gates[k * size : (k + 1) * size] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    updates, rows = [], []
    for x, h1, c1, h2, c2 in zip(inputs(grad, factor), *state, strict=True):
        h1, c1 = cell("recurs", x, h1, c1)
        h2, c2 = cell("recurs2", h1, h2, c2)
        updates.append(w["output.weight"][0] @ h2 + w["output.bias"][0])
        rows.append((h1, c1, h2, c2))
    return np.array(updates), tuple(np.array(s) for s in zip(*rows, strict=True))


BETAS = (0.9, 0.99, 0.999)
TAUS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def small_fc_initial(shapes):
    """Return a list with one dict of zeros per shape.

    m (3, *shape), v (*shape); row and col: lists of three arrays, the mean over the
    largest and over the second largest dimension; z (3, *shape) in place of row and
    col for tensors of less than two dimensions (none: one dimension of one entry).
    """
    states = []
    for shape in shapes:
        shape = tuple(shape) or (1,)
        state = {"m": np.zeros((3, *shape)), "v": np.zeros(shape)}
        if len(shape) == 1:
            state["z"] = np.zeros((3, *shape))
        else:
            d0, d1 = largest_two(shape)
            state["row"] = [np.zeros(shape).mean(axis=d0) for _ in range(3)]
            state["col"] = [np.zeros(shape).mean(axis=d1) for _ in range(3)]
        states.append(state)
    return states


def largest_two(shape):
    """Return the largest and second largest dimension; of equals the later first."""
    order = sorted(range(len(shape)), key=lambda i: shape[i])
    return order[-1], order[-2]


def decay(beta, delta):
    """Return 1 - (1 - beta) exp(10 delta), clipped to [0, 1]."""
    return min(max(1 - (1 - beta) * math.exp(10 * delta), 0.0), 1.0)


def small_fc(weights, params, grads, state, step, deltas=None, step_mult=0.001):
    """Return what is added to every tensor for lr = 1, and the next state.

    Args:
        weights: Arrays by name, network.input, network.linear_0, network.output.
        params: Arrays of any shape, before the step.
        grads: Gradients of the same shapes.
        state: See :func:`small_fc_initial`; not changed in place.
        step: Number of steps taken before, 0 at the first.
        deltas: Shifts of the decays: dict of "m" (3), "v" (1), "factored" (3); None
            for zeros. "factored" holds for row and col and, for 1-d tensors, for z.
        step_mult: Factor of the output.
    """
    if deltas is None:
        deltas = {"m": [0.0] * 3, "v": [0.0], "factored": [0.0] * 3}
    beta_m = [decay(b, float(s)) for b, s in zip(BETAS, deltas["m"], strict=True)]
    beta_v = decay(0.999, float(np.reshape(deltas["v"], -1)[0]))
    beta_f = [
        decay(b, float(s)) for b, s in zip(BETAS, deltas["factored"], strict=True)
    ]
    moves, states = [], []
    for p, g, old in zip(params, grads, state, strict=True):
        shape = np.shape(p)
        p = np.asarray(p, dtype=np.float64).reshape(shape or (1,))
        g = np.asarray(g, dtype=np.float64).reshape(shape or (1,))
        new = small_fc_moments(g, old, beta_m, beta_v, beta_f)
        columns = []
        for feature in small_fc_features(p, g, new):
            size = math.sqrt(1e-5 + np.mean(feature**2))
            columns.append((feature / size).reshape(-1))
        for tau in TAUS:
            columns.append(np.full(p.size, math.tanh(step / tau - 1)))
        x = np.stack(columns, axis=1)
        for name in ("input", "linear_0", "output"):
            x = x @ weights[f"network.{name}.weight"].T
            x = x + weights[f"network.{name}.bias"]
            if name != "output":
                x = np.where(x < 0, 0.0, x)
        moves.append((-step_mult * x[:, 0] * np.exp(0.001 * x[:, 1])).reshape(shape))
        states.append(new)
    return moves, states


def small_fc_moments(g, old, beta_m, beta_v, beta_f):
    """Return the moments of one tensor after a gradient g, no bias correction."""
    new = {"m": np.zeros_like(old["m"])}
    for k in range(3):
        new["m"][k] = beta_m[k] * old["m"][k] + (1 - beta_m[k]) * g
    new["v"] = beta_v * old["v"] + (1 - beta_v) * g**2
    square = g**2 + 1e-30
    if g.ndim == 1:
        new["z"] = np.zeros_like(old["z"])
        for k in range(3):
            new["z"][k] = beta_f[k] * old["z"][k] + (1 - beta_f[k]) * square
        return new
    for name, axis in zip(("row", "col"), largest_two(g.shape), strict=True):
        mean = np.mean(square, axis=axis)
        new[name] = [
            beta * moment + (1 - beta) * mean
            for beta, moment in zip(beta_f, old[name], strict=True)
        ]
    return new


def small_fc_features(p, g, moments):
    """Return the 28 features of one tensor, each of its shape, not normalised."""
    m, v, three = moments["m"], moments["v"], range(3)
    r = (v + 1e-6) ** -0.5
    if g.ndim == 1:
        z = moments["z"]
        fac_g = [g * np.maximum(z[k] + 1e-9, 1e-9) ** -0.5 for k in three]
        row = col = [z[k] for k in three]
        fac_m = [m[k] * (z[k] + 1e-6) ** -0.5 for k in three]
    else:
        d0, d1 = largest_two(g.shape)
        row, col, fac_g, fac_m = [], [], [], []
        for k in three:
            wide_row = np.expand_dims(moments["row"][k], d0)  # (..., 1 at d0, ...)
            wide_col = np.expand_dims(moments["col"][k], d1)
            mean = np.mean(wide_row, axis=d1, keepdims=True)
            rf = np.maximum(wide_row / (mean + 1e-9), 1e-9) ** -0.5
            cf = np.maximum(wide_col, 1e-9) ** -0.5
            row.append(np.broadcast_to(wide_row, g.shape))
            col.append(np.broadcast_to(wide_col, g.shape))
            fac_g.append(g * rf * cf)
            fac_m.append(m[k] * rf * cf)
    result = [g, p, m[0], m[1], m[2], v]
    result += [m[k] * r for k in three] + [r] + fac_g + row + col
    result += [(row[k] + 1e-8) ** -0.5 for k in three]
    result += [(col[k] + 1e-8) ** -0.5 for k in three]
    return result + fac_m


def phnn_potential(parameters, j, q):
    """Return V_j(q) = a (sqrt(1 + (b q)^2) - 1) + c q^2 / 2."""
    a, b, c = (parameters[name][j] for name in "abc")
    return a * (math.sqrt(1 + (b * q) ** 2) - 1) + c * q * q / 2


def phnn_energy(parameters, q, p):
    """Return the sum of V_j(q_j) + m_j p_j^2 / 2."""
    total = 0.0
    for j in range(len(q)):
        total += phnn_potential(parameters, j, q[j])
        total += parameters["m"][j] * p[j] ** 2 / 2
    return total


def phnn_slope(parameters, j, q, new):
    """Return (V_j(new) - V_j(q)) / (new - q), V_j'(q) where both agree.

    The quotient of the roots is taken times their sum, so that nothing cancels.
    """
    a, b, c = (parameters[name][j] for name in "abc")
    roots = math.sqrt(1 + (b * q) ** 2) + math.sqrt(1 + (b * new) ** 2)
    return (a * b * b / roots + c / 2) * (q + new)


def phnn_step(parameters, q, p, y, h, semi_implicit=False):
    """Return update, next q (k,) and next p (k,) of one coordinate of k modes.

    z' = z + h [(J - R) dH + G y] for z = (q_j, p_j); update: sum of h G_j dH_j.

    Discrete gradient: dH_j = (V_j quotient from q to q', m_j (p + p') / 2).
    Semi-implicit Euler: p' from dH = (V_j'(q), m_j p), then q' from (V_j'(q),
    m_j p'), and the update from that second dH.

    Args:
        parameters: a, b, c, m (>= 0), s: (k,); B: (k, 2, 2), R = B B^T; G: (k, 2).
        q: Positions (k,).
        p: Momenta (k,).
        y: Input, a number.
        h: Step, a number.
        semi_implicit: Semi-implicit Euler in place of the discrete gradient.
    """
    update, new_q, new_p = 0.0, [], []
    for j in range(len(q)):
        s, m = float(parameters["s"][j]), float(parameters["m"][j])
        B, G = np.asarray(parameters["B"][j]), np.asarray(parameters["G"][j])
        A = np.array([[0.0, s], [-s, 0.0]]) - B @ B.T
        q0, p0 = float(q[j]), float(p[j])
        if semi_implicit:
            force = phnn_slope(parameters, j, q0, q0)
            p1 = p0 + h * (A[1, 0] * force + A[1, 1] * m * p0 + G[1] * y)
            dH = np.array([force, m * p1])
            q1 = q0 + h * (A[0] @ dH + G[0] * y)
        else:

            def gradient(q1, j=j, q0=q0, p0=p0, m=m, A=A, G=G):
                # the p row is linear in p': solved for the midpoint (p + p') / 2
                slope = phnn_slope(parameters, j, q0, q1)
                middle = p0 + h / 2 * (A[1, 0] * slope + G[1] * y)
                return np.array([slope, m * middle / (1 - h / 2 * m * A[1, 1])])

            def residual(q1, q0=q0, A=A, G=G, gradient=gradient):
                return q1 - q0 - h * (A[0] @ gradient(q1) + G[0] * y)

            # with V convex and R >= 0 the residual rises at least as fast as q'
            reach = 1.001 * abs(residual(q0)) + 1e-12 * (1 + abs(q0))
            q1 = brentq(residual, q0 - reach, q0 + reach, xtol=1e-15, rtol=1e-15)
            dH = gradient(q1)
            p1 = p0 + h * (A[1] @ dH + G[1] * y)
        update += h * float(G @ dH)
        new_q.append(float(q1))
        new_p.append(float(p1))
    return update, np.array(new_q), np.array(new_p)
