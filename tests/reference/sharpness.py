"""Sharpness-aware minimization once more, per tensor, in float64.

Sources: Foret et al., arXiv 2010.01412 (SAM); Kwon et al., arXiv 2102.11600 (ASAM,
with the released code's T); Liu et al., arXiv 2203.02714 (LookSAM).
"""

import torch


def _norm(tensors):
    return sum(float((t**2).sum()) for t in tensors) ** 0.5


class Sharpness:
    """Reads kind ("sam", "asam", "looksam"), rho, offset, every, alpha; SGD's own.

    Args:
        xs: Tensors to move in place.
        settings: As above; ``sgd`` holds the arguments of torch.optim.SGD.
        weights: For every tensor whether it is a weight (ASAM).
    """

    def __init__(self, xs, settings, weights):
        self.xs, self.s, self.weights, self.t = xs, settings, weights, 0
        self.base = torch.optim.SGD(xs, **settings["sgd"])

    def step(self, evaluate):
        """Take one step."""
        s = self.s
        loss, first = evaluate()
        if s["kind"] == "looksam" and self.t % s["every"]:
            ratio = _norm(first) / _norm(self.orthogonal)
            g = [
                a + s["alpha"] * ratio * b
                for a, b in zip(first, self.orthogonal, strict=True)
            ]
        else:
            g = self.look(evaluate, first)
            along = sum(float((a * b).sum()) for a, b in zip(g, first, strict=True))
            along /= _norm(first) ** 2
            self.orthogonal = [a - along * b for a, b in zip(g, first, strict=True)]
        self.t += 1
        for x, grad in zip(self.xs, g, strict=True):
            x.grad = grad
        self.base.step()
        return loss

    def look(self, evaluate, first):
        """Return the gradient at the worst point nearby."""
        s = self.s
        T = [torch.ones_like(x) for x in self.xs]
        if s["kind"] == "asam":
            T = [
                x.abs() + s["offset"] if weight else t
                for x, t, weight in zip(self.xs, T, self.weights, strict=True)
            ]
        size = _norm([t * g for t, g in zip(T, first, strict=True)])
        before = [x.clone() for x in self.xs]
        for x, t, g in zip(self.xs, T, first, strict=True):
            x.add_(s["rho"] * t**2 * g / (size + 1e-12))
        _, worst = evaluate()
        for x, old in zip(self.xs, before, strict=True):
            x.copy_(old)
        return worst
