"""Formulas of the theory of mini-batch SGD, term by term in plain Python."""

import numpy as np


def S(z, lam, alpha, beta, gamma, tau2):
    """Denominator of every generating function."""
    first = (1 - z) * (1 - beta * z) * (1 - beta**2 * z)
    second = 2 * alpha * lam * z * (1 + beta) * (1 - beta * z)
    third = alpha**2 * lam**2 * z * (gamma * tau2 * (1 + beta * z) - (1 - beta * z))
    return first + second + third


def U(z, lams, alpha, beta, gamma, tau1, tau2):
    """Response to noise."""
    total = 0
    for lam in lams:
        total += lam**2 * (1 + beta * z) / S(z, lam, alpha, beta, gamma, tau2)
    return tau1 * gamma * alpha**2 * total


def V(z, lams, cs, alpha, beta, gamma, tau2):
    """Signal."""
    total = 0
    for lam, c in zip(lams, cs, strict=True):
        top = 2 * alpha * beta * lam * z + (1 - beta * z) * (1 - beta**2 * z)
        total += c * top / S(z, lam, alpha, beta, gamma, tau2)
    return total


def spectral_diagonal(lams, cs, samples, alphas, betas, batches, tau1, tau2):
    """Mean losses by the recursion over modes, after every step."""
    modes = diagonal_moments(lams, cs, samples, alphas, betas, batches, tau1, tau2)
    return [sum(C) / (2 * samples) for C in modes]


def diagonal_moments(lams, cs, samples, alphas, betas, batches, tau1, tau2):
    """Second moments of the modes by their recursion, after every step."""
    C, J, P = list(cs), [0.0] * len(cs), [0.0] * len(cs)
    moments = []
    for alpha, beta, b in zip(alphas, betas, batches, strict=True):
        gamma = (samples - b) / ((samples - 1) * b)
        total = sum(C)
        new = []
        for lam, c, j, p in zip(lams, C, J, P, strict=True):
            noise = gamma * (alpha * lam) ** 2 * (tau1 * total - tau2 * c)
            p_new = (
                (alpha * lam) ** 2 * c
                - 2 * alpha * beta * lam * j
                + beta**2 * p
                + noise
            )
            c_new = c - 2 * alpha * lam * c + 2 * beta * j + p_new
            j_new = beta * j - alpha * lam * c + p_new
            new.append((c_new, j_new, p_new))
        C, J, P = (list(column) for column in zip(*new, strict=True))
        moments.append(C)
    return moments


def averaged(K, d, alphas, betas, batches):
    """Mean losses over all mini-batches, in the released code's five products."""
    moments = averaged_moments(K, d, alphas, betas, batches)
    return [np.trace(C) / (2 * len(d)) for C in moments]


def averaged_moments(K, d, alphas, betas, batches):
    """E[d d'] over all mini-batches, after every step."""
    N = len(d)
    k = K / N
    C, J, P = np.outer(d, d), np.zeros((N, N)), np.zeros((N, N))
    moments = []
    for alpha, beta, b in zip(alphas, betas, batches, strict=True):
        gamma = (N - b) / ((N - 1) * b)
        noise = gamma * N * k @ np.diag(np.diag(C)) @ k
        new_P = alpha**2 * ((1 - gamma) * k @ C @ k + noise)
        new_P += -alpha * beta * (k @ J + (k @ J).T) + beta**2 * P
        new_C = C - alpha * (k @ C + C @ k) + beta * (J + J.T) + new_P
        J = beta * J - alpha * C @ k + new_P
        C, P = (new_C + new_C.T) / 2, (new_P + new_P.T) / 2
        moments.append(C)
    return moments


def sampled(K, d, batches, alphas, betas, form="v"):
    """Losses of one run with given mini-batches."""
    N = len(d)
    d, v, losses = d.copy(), np.zeros(N), []
    for batch, alpha, beta in zip(batches, alphas, betas, strict=True):
        g = np.zeros(N)
        for i in batch:
            g += K[:, i] * d[i] / len(batch)
        if form == "v":
            v = -alpha * g + beta * v
            d = d + v
        else:
            v = g + beta * v
            d = d - alpha * v
        losses.append(0.5 * np.mean(d**2))
    return losses


def sampled_adam(K, d, batches, alphas, b1, b2, extra=0):
    """Losses of one run of Adam in function space."""
    N = len(d)
    d, p, w, losses = d.copy(), np.zeros(N), np.zeros(N), []
    for s, (batch, alpha) in enumerate(zip(batches, alphas, strict=True), start=1):
        g = np.zeros(N)
        for i in batch:
            g += K[:, i] * d[i] / len(batch)
        p = (1 - b1) * g + b1 * p
        w = (1 - b2) * g**2 + b2 * w
        p_hat, w_hat = p / (1 - b1 ** (s + extra)), w / (1 - b2 ** (s + extra))
        d = d - alpha * p_hat / (np.sqrt(w_hat) + 1e-8)
        losses.append(0.5 * np.mean(d**2))
    return losses


def jacobi_rates(n, lr, a, b):
    """Learning rate and momentum of step n of the Jacobi schedule."""
    alpha = lr * (2 * n + a + b + 1) * (2 * n + a + b + 2)
    alpha /= 2 * (n + a + 1) * (n + a + b + 1)
    if n == 0:
        return alpha, 0.0
    beta = n * (n + b) * (2 * n + a + b + 2)
    beta /= (n + a + 1) * (n + a + b + 1) * (2 * n + a + b)
    return alpha, beta


def tangent_kernel(f, params, X):
    """Inner products of the gradients of single outputs; f(x) is a 0-d tensor."""
    rows = []
    for x in X:
        for p in params:
            p.grad = None
        f(x).backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in params]))
    J = np.stack(rows)
    return J @ J.T


def analytic_kernel(x, y, sigma_w, sigma_b):
    """Kernel of infinitely many ReLU units between two inputs, by its integrals."""
    d = len(x)
    inner = x @ y / d
    s = sigma_w**2 * inner + sigma_b**2
    nx = np.sqrt(sigma_w**2 * (x @ x) / d + sigma_b**2)
    ny = np.sqrt(sigma_w**2 * (y @ y) / d + sigma_b**2)
    angle = np.arccos(np.clip(s / (nx * ny), -1, 1))
    j0 = (np.pi - angle) / (2 * np.pi)
    j1 = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return nx * ny * j1 + sigma_w**2 * j0 * (inner + 1)
