"""A trained update rule as an ordinary optimizer."""

import zlib
from copy import deepcopy
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_ecd.flat import FlatParameters, Layout
from lightning_ecd.optimizers.base import Descent, Evaluate, Number, ParamsT
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.ranges import LogUniform
from lightning_ecd.rules import Context, State, UpdateRule, read_rule

#: What `Learned` takes if nothing is said.
DEFAULT = "phnn_mnist"


class Learned(Descent):
    r"""Lets a meta-trained rule m choose the update.

    .. math::
        (u, h) \leftarrow m(\nabla f(\theta), h), \qquad
        \theta \leftarrow (1 - \Delta t\, w_d)(\theta + \Delta t\, u)

    The file brings the network, how it sees gradients, its weights, and the rate that
    it was trained with. It is one that `modules.MetaTask` wrote: a checkpoint, or what
    ``lightning-ecd rule`` made of it; rules that come with the project are called by
    name, such as "lstm_quadratics".

    Args:
        params: Parameters or groups.
        lr: Δt > 0, the factor of the updates, out_mul of the released code; None: the
            file's.
        checkpoint: A file or a name; None: "phnn_mnist", or the weights that `rule`
            has.
        rule: The network, for a class outside this project; None: as the file says.
        weight_decay: w_d >= 0, decoupled.

    Note:
        The state is float32 beside 16-bit parameters. A parameter without a gradient
        counts as one whose gradient is zero.

    Reference:
        M. Andrychowicz et al., "Learning to learn by gradient descent by gradient
        descent", NeurIPS 2016, arXiv 1606.04474.
    """

    traits = Traits(
        family="learned",
        summary="a meta-trained network chooses the update of every coordinate",
        paper="Andrychowicz et al., NeurIPS 2016, arXiv 1606.04474",
        state="state_size",
        rows=True,
    )
    bounds = {"lr": "(0, inf)", "weight_decay": "[0, inf)"}
    shared = ("state_size", "fingerprint")

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float | None, LogUniform(1e-4, 1e1)] = None,
        checkpoint: str | None = None,
        rule: UpdateRule | None = None,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
    ):
        if rule is None or checkpoint is not None:
            rule, trained_lr = read_rule(checkpoint or DEFAULT, rule)
            lr = trained_lr if lr is None else lr
        else:
            rule = deepcopy(rule)
        if lr is None:
            raise ValueError("lr must be given with a rule that no checkpoint brings")
        self.rule = rule.requires_grad_(False)
        settings = {"lr": lr, "weight_decay": weight_decay}
        known = {"state_size": rule.state_size, "fingerprint": _fingerprint(rule)}
        super().__init__(params, settings | known)

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Ask the rule, go where it says."""
        state = self._state()
        g = self._rows(self.g).to(self._dtype)
        x = self._rows(self.x).to(self._dtype)
        numbers = torch.as_tensor(loss, dtype=g.dtype, device=g.device)
        if self.rows:
            numbers = numbers.expand(self.rows, 1).squeeze(-1)
        step = torch.full_like(numbers, self.system["steps"])
        context = Context(x, numbers, step, self._layout)
        u, after = self.rule(g, state, context)
        self._keep(after)
        u = self._flat_again(u)
        for group, part in self.parts:
            x, lr = self.x[part], group["lr"]
            x.add_(u[part].to(x.dtype), alpha=lr)
            if group["weight_decay"]:
                x.mul_(1 - lr * group["weight_decay"])

    @property
    def _dtype(self) -> torch.dtype:
        """What the rule computes in."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    @property
    def _layout(self) -> Layout:
        if not self.rows:
            return self.flat.layout
        return self.row_layout or Layout(((self.x.numel() // self.rows,),))

    def _state(self) -> State:
        """Return what the rule remembers."""
        if not self.system["steps"]:
            like = self._rows(self.x).to(self._dtype)
            state = self.rule.initial(like, self._layout)
            self._keep(state)
            return state
        state = {name: self._rows(h) for name, h in self.vectors.items()}
        for name in self.rule.uneven:
            state[name] = self.system[name].to(self.x.device)
        return state

    def _keep(self, state: State) -> None:
        for name, h in state.items():
            if name in self.rule.uneven:
                self.system[name] = h
            else:
                self.vectors[name] = self._flat_again(h)

    def _rows(self, v: Tensor) -> Tensor:
        """Return entries (n R, ...) run by run, (R, n, ...), where there are runs."""
        if not self.rows:
            return v
        return v.view(-1, self.rows, *v.shape[1:]).transpose(0, 1)

    def _flat_again(self, v: Tensor) -> Tensor:
        """Invert `_rows`."""
        return v.transpose(0, 1).flatten(0, 1) if self.rows else v

    def _rebound(self, former: FlatParameters | None) -> None:
        """Take the rule along; give new tensors their parts of an uneven state."""
        self.rule.to(self.x.device, self._dtype)
        for name, h in self.vectors.items():
            self.vectors[name] = h.to(self._dtype)
        if former is None:
            return
        for name in self.rule.uneven:
            if name not in self.system:
                continue
            old = self.system[name].split(self.rule.pieces(name, former.layout), -2)
            held = {id(p): h for p, h in zip(former.trainable, old, strict=True)}
            sizes = self.rule.pieces(name, self.flat.layout)
            like = self.system[name]
            pieces = [
                held.get(id(p), like.new_zeros(size, like.shape[-1]))
                for p, size in zip(self.flat.trainable, sizes, strict=True)
            ]
            self.system[name] = torch.cat(pieces, -2)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, if it is of this rule."""
        groups = state_dict["param_groups"]
        theirs = groups[0].get("fingerprint") if groups else None
        if theirs not in (None, self.defaults["fingerprint"]):
            raise ValueError(
                "the state is of a rule with other weights: give the checkpoint that "
                "the run began with"
            )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule": self.rule}


def _fingerprint(rule: UpdateRule) -> int:
    """Return a number that differs between rules of different weights."""
    value = zlib.crc32(repr((type(rule).__name__, rule.settings)).encode())
    for weight in rule.state_dict().values():
        plain = weight.detach().float().cpu().contiguous()
        value = zlib.crc32(plain.numpy().tobytes(), value)
    return value
