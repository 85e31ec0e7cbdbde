"""The step protocol that every optimizer of this project follows."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import optimizer as torch_optimizer

from lightning_ecd.checks import within
from lightning_ecd.errors import Diverged
from lightning_ecd.flat import FlatParameters, Layout
from lightning_ecd.kernels import Number, body_of
from lightning_ecd.optimizers.evaluations import Evaluate
from lightning_ecd.optimizers.traits import Traits

#: Parameters, or groups of them, as torch.optim takes them.
ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Descent(torch.optim.Optimizer):
    """An optimizer whose update reads and writes two flat vectors.

    `step` evaluates the closure once at the current parameters and hands the loss to
    `update`, which subclasses write. When `update` returns, `x` is the point to
    validate and to save.

    Vectors that persist live in ``state[first parameter]``, numbers in `system`, a
    dictionary within ``param_groups[0]``: both travel in `state_dict`, and numbers
    survive loading exactly.

    Args:
        params: Parameters or groups.
        defaults: Hyper-parameters, as for torch.optim.Optimizer.

    Attributes:
        info: Diagnostics of the last step; on an accelerator 0-d tensors, to be read
            only when somebody logs them.

    Note:
        Build the optimizer after the module is on its device. One dtype and device
        per optimizer. Draws follow memory order, so channels_last changes them, not
        their law. Saving one layer's state_dict alone writes the whole buffer that
        it is a view of: clone it first.
    """

    traits: ClassVar[Traits]
    #: `update` also takes ``value=``, a `Value`, where the caller of `step` has one
    uses_values: ClassVar[bool] = False
    #: Ranks keep their own gradients; the optimizer communicates.
    local_gradients: ClassVar[bool] = False
    #: Allowed interval of every bounded hyper-parameter, such as "(0, inf)"; None,
    #: where a hyper-parameter may be that, lies in all of them.
    bounds: ClassVar[Mapping[str, str]] = {}
    #: Hyper-parameters that all groups share.
    shared: tuple[str, ...] = ()
    #: Chooses what passes over the vectors: eager, compiled or fused.
    body_of = staticmethod(body_of)

    def __init__(self, params: ParamsT, defaults: dict[str, Any]):
        self._flat: FlatParameters | None = None
        super().__init__(params, defaults)
        self.info: dict[str, Number] = {}

    #: Where `x` returns if an evaluation elsewhere fails; updates that leave set it.
    _home: Tensor | None = None

    #: Independent runs that are the rows of one parameter, whose columns are
    #: contiguous (trajectories.py); numbers of the system are then columns (rows, 1).
    #: 0: one run.
    rows: int = 0
    #: Shapes of the tensors that such a row holds one after the other; None: one.
    row_layout: Layout | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its hyper-parameters must lie in `bounds`, some in none else."""
        for name, interval in self.bounds.items():
            within(interval, **{name: param_group.get(name, self.defaults[name])})
        head = self.param_groups[0] if self.param_groups else self.defaults
        for name in self.shared:
            own = param_group.get(name, self.defaults[name])
            if own != head[name]:
                raise ValueError(
                    f"{name} must be {head[name]} in all groups, got {own}"
                )
        super().add_param_group(param_group)

    @property
    def x(self) -> Tensor:
        """All trainable parameters, shape (n,)."""
        return self.flat.x

    @property
    def g(self) -> Tensor:
        """All gradients, shape (n,)."""
        return self.flat.g

    @property
    def flat(self) -> FlatParameters:
        """The two vectors; bound at the first step."""
        if self._flat is None:
            self.bind()
        assert self._flat is not None
        return self._flat

    @property
    def parts(self) -> list[tuple[dict[str, Any], slice]]:
        """Every group and where it lies in the vectors."""
        pairs = zip(self.param_groups, self.flat.spans, strict=True)
        return [(group, slice(*span)) for group, span in pairs]

    def decayed(self, g: Tensor, x: Tensor) -> Tensor:
        """Return g + λ x, shape (n,), with the weight decay of every group."""
        force = g.clone()
        for group, part in self.parts:
            if group["weight_decay"]:
                force[part].add_(x[part], alpha=group["weight_decay"])
        return force

    @property
    def host(self) -> bool:
        """Whether numbers are floats: one run, on a device that reads them at once."""
        return self.flat.host and not self.rows

    @property
    def system(self) -> dict[str, Any]:
        """Numbers and counters of the whole system; also short tensors of them."""
        return self.param_groups[0].setdefault("system", {})

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Persistent vectors, each laid out as `x`."""
        return self.state[self.param_groups[0]["params"][0]]

    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """Evaluate, then update.

        Args:
            closure: Zeroes the gradients, evaluates, backpropagates and returns the
                loss. Optional only where the traits do not ask for it: the gradients
                then are those present.
            extra: Handed to `update`.

        Returns:
            The loss at the starting point, as the closure returned it.

        Raises:
            Diverged: If the loss is not finite (on the CPU, where asking costs
                nothing); parameters and state are left as they were.
        """
        if self._watched():
            return _watched_step(self, closure, **extra)
        return self._step(closure, **extra)

    # torch wraps every `step` in a profiler region, which doubles the time of a small
    # step; this mark makes it leave ours alone. `_watched_step` has it when needed.
    step.hooked = True  # type: ignore[attr-defined]

    def _watched(self) -> bool:
        """Return whether a profiler runs or a step hook is registered."""
        return bool(
            profiler._is_profiler_enabled
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )

    def _step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        self.bind()
        first: Any = None

        def evaluate() -> Number:
            nonlocal first
            with torch.enable_grad():
                loss = closure()  # type: ignore[misc]
            if first is None:
                first = loss
            self.flat.gather_gradients()
            return self._as_number(loss)

        system = self.system
        system.setdefault("steps", 0)
        with torch.no_grad():
            if closure is not None:
                try:
                    self.begin()
                    self.update(evaluate(), evaluate, **extra)
                except Diverged:
                    if self._home is not None:
                        self.x.copy_(self._home)
                    raise
                finally:
                    self._home = None
            elif self.traits.closure:
                raise TypeError(
                    f"{type(self).__name__}.step needs a closure that evaluates the "
                    "model and returns the loss"
                )
            else:
                self.flat.gather_gradients()
                self.update(math.nan, evaluate, **extra)
        system["steps"] += 1
        return first

    def _as_number(self, loss: Any) -> Number:
        """Return a closure's loss as the update takes it."""
        if loss is None:
            raise TypeError(
                f"the closure given to {type(self).__name__}.step returned None: it "
                "must return the loss"
            )
        if self.rows:
            return loss.detach().double().view(self.rows, 1)
        if not self.flat.host:
            return torch.as_tensor(loss, device=self.x.device).detach().double()
        number = loss.item() if isinstance(loss, Tensor) else float(loss)
        self._require_finite([number])
        return number

    def _require_finite(self, losses: Sequence[float] | Tensor) -> None:
        """Stop at a loss that is not finite, where asking costs nothing."""
        for number in losses if self.flat.host else ():
            if not math.isfinite(number):
                raise Diverged(
                    f"step {self.system['steps']}: the loss is {float(number)}; "
                    f"{type(self).__name__} stops before the update"
                )

    def begin(self) -> None:
        """Move `x` to where the first evaluation is wanted: from x itself, nowhere."""

    @abstractmethod
    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Move `x`, given the loss and `g` at `x`.

        Args:
            loss: The loss at `x`; nan if `step` was called without a closure.
            evaluate: Evaluates at the current `x`, refreshes `g`, returns the loss.
        """
        raise NotImplementedError

    def bind(self) -> None:
        """Make parameters and gradients views of the two vectors, where they are not.

        Views get lost when a module is moved or converted, parameters are thawed, a
        group is added or the optimizer is unpickled; vectors in the state then are
        laid out anew and grow by zeros for new parameters.
        """
        groups = [group["params"] for group in self.param_groups]
        former = self._flat
        if former is not None and former.holds(groups):
            return
        flat = FlatParameters(groups)
        if former is not None and (
            flat.x.dtype != former.x.dtype or flat.x.device != former.x.device
        ):
            raise RuntimeError(
                f"{type(self).__name__} began on {former.x.dtype} parameters on "
                f"{former.x.device}, they now are {flat.x.dtype} on {flat.x.device}: "
                "convert the module first, then build the optimizer"
            )
        for name, vector in self.vectors.items():
            if former is None:
                self.vectors[name] = flat.from_contiguous(vector)
            else:
                self.vectors[name] = flat.adopt(vector, former)
        self._flat = flat
        if not flat.host:
            for group in self.param_groups:
                group["system"] = {
                    key: number
                    if key == "steps" or isinstance(number, Tensor)
                    else torch.as_tensor(
                        number,
                        device=flat.x.device,
                        dtype=torch.float64 if isinstance(number, float) else None,
                    )
                    for key, number in group.get("system", {}).items()
                }
        self._rebound(former)

    def _rebound(self, former: FlatParameters | None) -> None:
        """Mend what depends on the layout of the vectors.

        Args:
            former: The layout before; None after building, loading or copying.
        """

    def new_vector(self) -> Tensor:
        """Return zeros laid out as `x`, in float32 beside 16-bit parameters."""
        half = self.x.dtype in (torch.bfloat16, torch.float16)
        return torch.zeros_like(self.x, dtype=torch.float32 if half else None)

    def kept(self, name: str) -> Tensor:
        """Return a vector that persists, zeros at first."""
        vectors = self.vectors
        if name not in vectors:
            vectors[name] = self.new_vector()
        vector = vectors[name]
        if vector.dtype.itemsize < self.x.dtype.itemsize:  # of a shorter checkpoint
            vector = vectors[name] = vector.to(self.x.dtype)
        return vector

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients to zero, in place: they stay views of `g`."""
        groups = [group["params"] for group in self.param_groups]
        if self._flat is not None and self._flat.holds(groups):
            self._flat.zero_gradients()
        else:
            super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and contiguous-order vectors (torch's layout)."""
        packed = super().state_dict()
        packed["param_groups"] = [_plain(group) for group in packed["param_groups"]]
        # the numbers are copies, so the vectors must be: a snapshot of one moment
        packed["state"] = {
            index: {
                name: vector.clone()
                for name, vector in self._in_checkpoint_order(vectors).items()
            }
            for index, vectors in packed["state"].items()
        }
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; vectors keep their own dtype."""
        super().load_state_dict(state_dict)
        # torch casts vectors to the parameter's dtype; a float32 momentum beside
        # bfloat16 parameters must stay what it was.
        for vectors in state_dict["state"].values():
            for name, vector in vectors.items():
                if isinstance(vector, Tensor):
                    device = self.vectors[name].device
                    self.vectors[name] = vector.to(device, copy=True)
        self._flat = None

    def _in_checkpoint_order(self, vectors: Mapping[str, Any]) -> dict[str, Any]:
        flat = self._flat
        return {
            name: v if flat is None else flat.to_contiguous(v)
            for name, v in vectors.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["state"] = {
            p: self._in_checkpoint_order(vectors)
            for p, vectors in state["state"].items()
        }
        state["param_groups"] = [_plain(group) for group in state["param_groups"]]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._flat = None
        self.info = {}
        super().__setstate__(state)
        self.state = defaultdict(dict, self.state)


_watched_step = torch.optim.Optimizer.profile_hook_step(Descent._step)


def with_decay(g: Tensor, x: Tensor, decay: float) -> Tensor:
    """Return g + λ x, or g itself where the weight decay λ is 0."""
    return g.add(x, alpha=decay) if decay else g


def with_momentum(
    v: Tensor, d: Tensor, m: float, nesterov: bool, fresh: float = 1.0
) -> Tensor:
    """Set v ← m v + fresh d; return d + m v with Nesterov's momentum, else v itself."""
    v.mul_(m).add_(d, alpha=fresh)
    return d.add(v, alpha=m) if nesterov else v


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group whose system is a copy, device numbers read out."""
    if "system" not in group:
        return dict(group)
    return {**group, "system": {k: _copied(v) for k, v in group["system"].items()}}


def _copied(value: Any) -> Any:
    """Return a number, or a copy of a few of them."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.dim() == 0 else value.detach().clone()
