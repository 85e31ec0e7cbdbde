r"""One step along the gradient's projection on random directions.

The legend of `directions` holds; η is ``lr``, m ``momentum``, v its vector.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lightning_ecd.bases import Projector
from lightning_ecd.errors import UserError
from lightning_ecd.flat import dot, number, square_norm
from lightning_ecd.optimizers.base import Evaluate, Number
from lightning_ecd.optimizers.coordinates import extremes, selected, transformed
from lightning_ecd.optimizers.directions import Directions
from lightning_ecd.optimizers.scalars import stacked, where

#: Adam's averages of the gradient and of its square, and what is added to the root.
_BETAS, _EPS = (0.9, 0.999), 1e-8


class Subspace(Directions):
    """Measures coordinates, reshapes and expands them, and moves along the result.

    What is switched off costs nothing; `RBD` tells what the switches mean.

    `info` holds, every `diagnostics_every` steps, mean, standard deviation and
    extremes of the coordinates and, over tensors, of the cosine of g and s;
    ``cosine``, that of all parameters, and their number; mean, mean magnitude
    and deviation of the weights; ``relative_update``, the mean of 1 - |w/w'|; and as
    vectors the ``coordinates``, the ``cosines`` and, where it is asked for,
    ``second_order``. On several processes ``bytes_sent`` of every step.
    """

    local_gradients = True

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Move x along random directions, or along the gradient where that is due."""
        head, t = self.param_groups[0], self.system["steps"]
        self.info = {}
        from_ = math.inf if head["sgd_from"] is None else head["sgd_from"]
        if t < head["sgd_first"] or t >= from_:
            force = self._force()
            for group, part in self.parts:
                self.x[part].sub_(force[part], alpha=group["sgd_lr"])
            return
        if head["redraw"] != "all":
            self._choose(t)
        if head["continuous"]:
            self._gather(evaluate)
        else:
            self._move(*self._direction(evaluate, select=True))

    def _gather(self, evaluate: Evaluate) -> None:
        """Add to the coordinates of a window; at its end move by them as a whole."""
        head, t = self.param_groups[0], self.system["steps"]
        lr, window = head["lr"], head["redraw_every"]
        if any(group["lr"] != lr for group in self.param_groups):
            raise UserError("continuous needs the same lr in all groups")
        if head["momentum"]:
            self.kept("momentum")
        if t % window == 0:
            self.kept("anchor").copy_(self.x)
            self.system.pop("gathered", None)
        s, c = self._direction(evaluate, select=False)
        c = self.system.get("gathered", torch.zeros_like(c)).to(c) + lr * c
        self.system["gathered"] = c
        self.x.sub_(s, alpha=lr)
        if (t + 1) % window == 0:
            c = self._selected(c)
            s = self.expanded(self.projectors(), c)
            self.x.copy_(self.kept("anchor"))
            self._move(s, c, lr=1.0)

    # -- coordinates ---------------------------------------------------------------

    def _direction(self, evaluate: Evaluate, select: bool) -> tuple[Tensor, Tensor]:
        """Return s, (n,), and the coordinates it is made of, (Σ d_k,)."""
        head, own, made = self.param_groups[0], [], {}
        shared, mean = head["share_basis"], head["reduce"] == "mean"
        for i, worker in enumerate(self.workers()):
            if i:
                evaluate()
            made[worker] = self.projectors(0 if shared else worker)
            own.append(self._measured(made[worker], evaluate))
        every = self.exchanged(own)
        if shared:
            total = torch.stack(every).sum(0)
            every = [total / len(every) if mean else total]
            made[0] = made[self.workers()[0]]
        found = [self._shaped(c, select) for c in every]
        s = self._sum(made, found)
        if mean and len(found) > 1:
            s.div_(len(found))
        if head["displaced"] or head["redraw"] != "all":
            self.system["coordinates"] = found[0].clone()
        return s, found[0]

    def _sum(self, made: dict[int, list[Projector]], found: list[Tensor]) -> Tensor:
        """Return the sum over workers of what their coordinates expand to."""
        s = self.expanded(made.get(0) or self.projectors(0), found[0])
        for worker, c in enumerate(found[1:], 1):
            s.add_(self.expanded(made.get(worker) or self.projectors(worker), c))
        return s

    def _measured(self, projectors: list[Projector], evaluate: Evaluate) -> Tensor:
        """Return G = P g, (Σ d_k,), at the point where it is wanted."""
        before = self.system.get("coordinates")
        if self.param_groups[0]["displaced"]:
            self._home = self.x.clone()
            if before is not None:
                self.x.add_(self.expanded(projectors, before.to(self.x.device)))
            self.info["displaced_loss"] = evaluate()
            self.x.copy_(self._home)
        return self.projected(projectors, self._force())

    def _force(self) -> Tensor:
        """Return g + λ w, shape (n,)."""
        if any(group["weight_decay"] for group in self.param_groups):
            return self.decayed(self.g, self.x)
        return self.g

    def _shaped(self, c: Tensor, select: bool) -> Tensor:
        """Return the coordinates after T, Adam and selection."""
        head = self.param_groups[0]
        if head["transformation"] != "none":
            parts = self.split(c)
            c = torch.cat([transformed(part, head["transformation"]) for part in parts])
        if head["inner"] == "coordinate_adam":
            c = self._adam(c, *self._moments(c))
        return self._selected(c) if select else c

    def _selected(self, c: Tensor) -> Tensor:
        head = self.param_groups[0]
        fraction, count = head["top_fraction"], head["top_count"]
        if fraction is None and not count:
            return c
        return torch.cat([selected(part, fraction, count) for part in self.split(c)])

    def _moments(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return Adam's averages of the coordinates, kept beside the counters."""
        for name in ("exp_avg", "exp_avg_sq"):
            kept = self.system.get(name, torch.zeros_like(c))
            self.system[name] = kept.to(c)
        return self.system["exp_avg"], self.system["exp_avg_sq"]

    def _adam(self, step: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
        """Return Adam's direction; its averages are updated."""
        t, (b1, b2) = self.system["steps"] + 1, _BETAS
        step = step.to(exp_avg)
        exp_avg.lerp_(step, 1 - b1)
        exp_avg_sq.mul_(b2).addcmul_(step, step, value=1 - b2)
        root = (exp_avg_sq / (1 - b2**t)).sqrt_().add_(_EPS)
        return exp_avg / root / (1 - b1**t)

    # -- bases ---------------------------------------------------------------------

    def _choose(self, t: int) -> None:
        """Count up the directions that are drawn anew at the start of a window."""
        head, c = self.param_groups[0], self.system.get("coordinates")
        if c is None or t % head["redraw_every"]:
            return
        chosen = [
            extremes(part, head["redraw"], head["redraw_fraction"])
            for part in self.split(c)
        ]
        counts = self.system.get("redrawn", torch.zeros(len(c), dtype=torch.int64))
        self.system["redrawn"] = counts.cpu() + torch.cat(chosen).cpu()
        self._kept = {}

    def redraws(self) -> int:
        """Return how often whole bases have been drawn anew before this step."""
        return 0 if self.param_groups[0]["redraw"] != "all" else super().redraws()

    def _redrawn(self, k: int) -> Sequence[int] | None:
        counts = self.system.get("redrawn")
        return None if counts is None else self.split(counts)[k].tolist()

    # -- the move ------------------------------------------------------------------

    def _correlates(self) -> bool:
        head = self.param_groups[0]
        bounded = head["surgeon"] is not None or head["sgd_below"] is not None
        return bounded or head["correlation_multiplier"]

    def _move(self, s: Tensor, c: Tensor, lr: float | None = None) -> None:
        """Set w ← w - η s, after all that is switched on; `lr` takes η's place."""
        head, t = self.param_groups[0], self.system["steps"]
        due = head["diagnostics_every"] and (t + 1) % head["diagnostics_every"] == 0
        several = len(self.workers()) > 1 or "bytes_sent" in self.info
        cosines: list[Number] = []
        if (due and not several) or self._correlates():
            force = self._force()
            cosines = [_cosine(force[part], s[part]) for part in self.tensors]
            if due:
                self.info["cosine"] = _cosine(force, s)
        before = self.x.clone() if due else self.x
        step = s
        if head["momentum"]:
            v = self.kept("momentum")
            step = v.lerp_(s.to(v), 1 - head["momentum"])
        if self._correlates():
            step = self._trimmed(step, s, cosines)
        if head["inner"] == "adam":
            averages = self.kept("exp_avg"), self.kept("exp_avg_sq")
            step = self._adam(step, *averages)
        if head["sgd_tensor"] or head["sgd_below"] is not None:
            self._mix(step, cosines, lr)
        else:
            for group, part in self.parts:
                self.x[part].sub_(step[part], alpha=lr or group["lr"])
        if due:
            self._diagnose(c, cosines, before)

    def _trimmed(self, step: Tensor, s: Tensor, cosines: list[Number]) -> Tensor:
        """Return the step, tensor by tensor, as its correlation with g allows."""
        head, step = self.param_groups[0], step.clone()
        for part, cosine in zip(self.tensors, cosines, strict=True):
            if head["surgeon"] is not None:
                step[part] = s[part] * where(cosine >= head["surgeon"], 1.0, 0.0)
            if head["correlation_multiplier"]:
                step[part] *= where(cosine > 0, cosine, 0.0)
        return step

    def _mix(self, step: Tensor, cosines: list[Number], lr: float | None) -> None:
        """Move, some tensors or in this step all of them by the gradient."""
        head, force = self.param_groups[0], self._force()
        chosen, plain = head["sgd_tensor"], False
        if not chosen:
            plain = min(map(float, cosines)) < head["sgd_below"]
            self.info["sgd_step"] = float(plain)
        tensors = zip(self.tensors, self._groups(), strict=True)
        for i, (part, group) in enumerate(tensors, 1):
            if (i == abs(chosen)) == (chosen > 0) if chosen else plain:
                self.x[part].sub_(force[part], alpha=group["sgd_lr"])
            else:
                self.x[part].sub_(step[part], alpha=lr or group["lr"])

    @property
    def tensors(self) -> list[slice]:
        """Where every tensor lies in the vectors."""
        ends = [0, *accumulate(self.flat.sizes)]
        return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def _groups(self) -> list[dict[str, Any]]:
        """Return the group of every tensor."""
        return [
            group
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def _diagnose(self, c: Tensor, cosines: list[Number], before: Tensor) -> None:
        """Measure what the step did; `before` are the weights that it changed."""
        self.info |= {f"coordinate_{k}": v for k, v in _summary(c).items()}
        if cosines:
            found = stacked(cosines)
            self.info |= {f"cosine_{k}": v for k, v in _summary(found).items()}
            self.info["cosines"] = found
        weights = self.x.float()
        ratio = torch.where(before != 0, (weights / before).abs(), 1.0)
        self.info |= {
            "weight_mean": number(weights.mean()),
            "weight_size": number(weights.abs().mean()),
            "weight_std": number(weights.std(correction=0)),
            "relative_update": number((1 - ratio).mean()),
            "parameters": float(len(weights)),
            "coordinates": c,
        }
        if self.param_groups[0]["second_order"]:
            self.info["second_order"] = self._second_order(c)

    def _second_order(self, c: Tensor) -> Tensor:
        """Return Σ_j ((φ_ij² - 1) c_i)² for every direction, (Σ d_k,)."""
        found = []
        projectors = self.projectors(self.workers()[0])
        for projector, own in zip(projectors, self.split(c), strict=True):
            for i, weight in enumerate(own):
                terms = (projector.rows(i, i + 1).square() - 1) * weight
                found.append(terms.square().sum())
        return torch.stack(found)


def _cosine(a: Tensor, b: Tensor) -> Number:
    """Return the cosine of two vectors; 0 if one of them is 0."""
    b = b.to(a.dtype)
    sizes = (square_norm(a) * square_norm(b)) ** 0.5
    return dot(a, b) / (sizes + where(sizes > 0, 0.0, 1.0))


def _summary(v: Tensor) -> dict[str, Number]:
    parts = {
        "mean": v.mean(),
        "std": v.std(correction=0),
        "min": v.min(),
        "max": v.max(),
    }
    return {name: number(part) for name, part in parts.items()}
