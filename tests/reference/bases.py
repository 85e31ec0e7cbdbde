"""Descent in random bases once more: loops over directions and tensors, float64.

Source: F. Gressmann, Z. Eaton-Rosen, C. Luschi, NeurIPS 2020, arXiv 2011.04720, and its
released code. A compartment is a pair (d, pieces), a piece a triple (tensor, start,
stop); ``rows(redraw, k)`` returns the raw directions of compartment k as a matrix
(d, n_k) in the order of its pieces.
"""

import math

import torch


def transform(values, how):
    """Return the values of a list after T."""
    if how == "norm":
        low, high = min(values), max(values)
        if high == low:
            return [0.0 for _ in values]
        return [(v - low) / (high - low) - 0.5 for v in values]
    if how == "ranks":
        order = sorted(range(len(values)), key=lambda i: values[i])
        ranks = {i: place for place, i in enumerate(order)}
        return [ranks[i] / (len(values) - 1) - 0.5 for i in range(len(values))]
    return list(values)


def select(values, fraction, count):
    """Return the values, those that are not chosen zero."""
    d = len(values)

    def largest(keys, k):
        return set(sorted(range(d), key=lambda i: -keys[i])[:k])

    if fraction is not None and fraction >= 0:
        kept = largest([abs(v) for v in values], round(d * fraction))
    elif fraction is not None:
        dropped = largest([abs(v) for v in values], round(d * (1 - abs(fraction))))
        kept = set(range(d)) - dropped
    elif count > 0:
        kept = largest(values, count)
    elif count < 0:
        kept = set(range(d)) - largest(values, -count)
    else:
        kept = set(range(d))
    return [v if i in kept else 0.0 for i, v in enumerate(values)]


class Bases:
    """What all rules share: tensors, compartments, directions."""

    def __init__(self, xs, compartments, rows, **settings):
        self.xs, self.compartments, self.rows = xs, compartments, rows
        self.s, self.t = settings, 0
        self.D = sum(x.numel() for x in xs)

    def directions(self, redraw, k):
        """Return φ: a list over directions of lists over pieces of vectors."""
        d, pieces = self.compartments[k]
        matrix, how = self.rows(redraw, k), self.s.get("normalize", "auto")
        result = []
        for i in range(d):
            blocks, start = [], 0
            for _, first, last in pieces:
                blocks.append(matrix[i, start : start + last - first].clone())
                start += last - first
            if how == "tensor":
                blocks = [b / math.sqrt((b * b).sum()) for b in blocks]
            elif how == "row":
                size = math.sqrt(sum((b * b).sum() for b in blocks))
                blocks = [b / size for b in blocks]
            elif how == "auto":
                blocks = [b / math.sqrt(self.D) for b in blocks]
            elif how == "unbiased":
                blocks = [b / math.sqrt(d) for b in blocks]
            elif not isinstance(how, str):
                blocks = [b / how for b in blocks]
            result.append(blocks)
        return result

    def project(self, phi, k, gs):
        """Return φ_i·g for every direction of a compartment."""
        d, pieces = self.compartments[k]
        result = []
        for i in range(d):
            total = 0.0
            for block, (tensor, first, last) in zip(phi[i], pieces, strict=True):
                total += (block * gs[tensor].reshape(-1)[first:last]).sum().item()
            if self.s.get("normalize") == "mean_sq":
                total /= d
            result.append(total)
        return result

    def expand(self, phi, k, c, out):
        """Add Σ c_i φ_i of a compartment to a list of tensors."""
        d, pieces = self.compartments[k]
        scale = 1 / d if self.s.get("normalize") in ("mean", "mean_sq") else 1.0
        for i in range(d):
            for block, (tensor, first, last) in zip(phi[i], pieces, strict=True):
                out[tensor].view(-1)[first:last] += scale * c[i] * block


class RBD(Bases):
    """Random bases descent and, with R = 0, fixed projection descent."""

    def step(self, evaluate):
        """Take one step; `evaluate()` returns loss and gradients at the present xs."""
        s, t, xs = self.s, self.t, self.xs
        _, gs = evaluate()
        self.t += 1
        lr, sgd_lr = s["lr"], s.get("sgd_lr", 0.0)
        sgd_from = s.get("sgd_from")
        if t < s.get("sgd_first", 0) or (sgd_from is not None and t >= sgd_from):
            for x, g in zip(xs, gs, strict=True):
                x.sub_(sgd_lr * g)
            return
        R = s.get("redraw_every", 1)
        redraw = t // R if R else 0
        phi = [self.directions(redraw, k) for k in range(len(self.compartments))]
        if s.get("displaced") and t > 0:
            shift = [torch.zeros_like(x) for x in xs]
            for k in range(len(phi)):
                self.expand(phi[k], k, self.c[k], shift)
            for x, move in zip(xs, shift, strict=True):
                x.add_(move)
            _, gs = evaluate()
            for x, move in zip(xs, shift, strict=True):
                x.sub_(move)
        lam = s.get("weight_decay", 0.0)
        gs = [g + lam * x for g, x in zip(gs, xs, strict=True)]
        self.c, sums = [], [torch.zeros_like(x) for x in xs]
        for k in range(len(phi)):
            c = transform(self.project(phi[k], k, gs), s.get("transformation"))
            c = select(c, s.get("top_fraction"), s.get("top_count", 0))
            self.c.append(c)
            self.expand(phi[k], k, c, sums)
        m = s.get("momentum", 0.0)
        steps = [v.clone() for v in sums]
        if m:
            if t == 0:
                self.v = [torch.zeros_like(x) for x in xs]
            self.v = [m * v + (1 - m) * s_ for v, s_ in zip(self.v, sums, strict=True)]
            steps = [v.clone() for v in self.v]
        cosines = []
        for g, s_ in zip(gs, sums, strict=True):
            size = math.sqrt((g * g).sum() * (s_ * s_).sum())
            cosines.append((g * s_).sum().item() / size if size else 0.0)
        for i, cosine in enumerate(cosines):
            if s.get("surgeon") is not None:
                keep = cosine >= s["surgeon"]
                steps[i] = sums[i].clone() if keep else torch.zeros_like(sums[i])
            if s.get("correlation_multiplier"):
                steps[i] = steps[i] * max(cosine, 0.0)
        chosen, below = s.get("sgd_tensor", 0), s.get("sgd_below")
        all_sgd = not chosen and below is not None and min(cosines) < below
        for i, x in enumerate(xs):
            plain = all_sgd
            if chosen > 0:
                plain = i + 1 == chosen
            elif chosen < 0:
                plain = i + 1 != -chosen
            x.sub_(sgd_lr * gs[i] if plain else lr * steps[i])


class NES(Bases):
    """Natural evolution strategies; `std`, `transformation`, `mean`."""

    def step(self, evaluate):
        """Take one step; `evaluate()` returns the loss and gradients at the xs."""
        s, xs = self.s, self.xs
        evaluate()
        matrix, (d, pieces) = self.rows(self.t, 0), self.compartments[0]
        start = [x.clone() for x in xs]
        losses = []
        for i in range(d):
            place = 0
            for tensor, first, last in pieces:
                e = matrix[i, place : place + last - first]
                xs[tensor].view(-1)[first:last] += s["std"] * e
                place += last - first
            losses.append(evaluate()[0])
            for x, old in zip(xs, start, strict=True):
                x.copy_(old)
        if s["transformation"] == "none":
            mean = sum(losses) / d
            weights = [mean - loss for loss in losses]
        else:
            weights = [-v for v in transform(losses, s["transformation"])]
        if s["mean"]:
            weights = [v / (s["std"] * d) for v in weights]
        sums = [torch.zeros_like(x) for x in xs]
        self.expand(self.directions(self.t, 0), 0, weights, sums)
        for x, v in zip(xs, sums, strict=True):
            x.add_(s["lr"] * v)
        self.t += 1


class Differences(Bases):
    """Random bases descent by differences of losses; `distance`, `oracle`."""

    def step(self, evaluate):
        """Take one step; `evaluate()` returns the loss and gradients at the xs."""
        s, xs, here = self.s, self.xs, evaluate()[0]
        phi = self.directions(self.t, 0)
        (d, pieces), delta = self.compartments[0], s["distance"]

        def loss_at(i, distance):
            start = [x.clone() for x in xs]
            for block, (tensor, first, last) in zip(phi[i], pieces, strict=True):
                if s.get("normalize") == "mean_sq":
                    block = block / d
                xs[tensor].view(-1)[first:last] += distance * block
            loss = evaluate()[0]
            for x, old in zip(xs, start, strict=True):
                x.copy_(old)
            return loss

        slopes = []
        for i in range(d):
            if s["oracle"] == "central":
                rise = loss_at(i, delta) - loss_at(i, -delta)
                slopes.append(rise / (2 * delta))
            else:
                slopes.append((loss_at(i, delta) - here) / delta)
        c = transform(slopes, s.get("transformation"))
        sums = [torch.zeros_like(x) for x in xs]
        self.expand(phi, 0, c, sums)
        for x, v in zip(xs, sums, strict=True):
            x.sub_(s["lr"] * v)
        self.t += 1


class GradientBasis:
    """Descent along the last d gradients, divided by a power of their norms."""

    def __init__(self, xs, lr, d, offset, power):
        self.xs, self.lr, self.d = xs, lr, d
        self.offset, self.power, self.seen = offset, power, []

    def step(self, evaluate):
        """Take one step; `evaluate()` returns loss and gradients at the xs."""
        _, gs = evaluate()
        if not self.offset:
            self.seen.append(gs)
        if self.seen:
            sums = [torch.zeros_like(x) for x in self.xs]
            for old in self.seen[-self.d :]:
                size = math.sqrt(sum((v * v).sum() for v in old))
                inner = sum((v * g).sum() for v, g in zip(old, gs, strict=True))
                for total, v in zip(sums, old, strict=True):
                    total += v * inner / size ** (2 * self.power)
            for x, v in zip(self.xs, sums, strict=True):
                x.sub_(self.lr * v)
        if self.offset:
            self.seen.append(gs)
