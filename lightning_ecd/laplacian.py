r"""Value, gradient and Laplacian of a network in one forward pass.

Instead of differentiating twice backward, every layer passes on three things: its
value, its slopes along the directions of differentiation, and its Laplacian. A linear
layer maps each of them alike; an activation :math:`\sigma` obeys the chain rule

.. math::
    a = \sigma(z), \quad \partial_i a = \sigma'(z) \partial_i z, \quad
    \Delta a = \sigma'(z) \Delta z + \sigma''(z) \sum_i (\partial_i z)^2 .

=================  =========  ==================================================
symbol             variable   shape
=================  =========  ==================================================
:math:`z`          `value`    (N, H): N points, H units
:math:`∂_i z`      `slopes`   (P, N, H), or (P, 1, H) where equal at all points
:math:`Δz`         `bend`     (N, H)
=================  =========  ==================================================

The derivatives are ordinary results: gradients with respect to parameters and points
flow through them, and under no_grad or inference_mode they are there as well.

Reference:
    R. Li, H. Ye, D. Jiang et al., "A computational framework for neural network-based
    variational Monte Carlo with Forward Laplacian", Nature Machine Intelligence 6
    (2024), arXiv 2307.08214.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import grad, vjp
from torch.nn.functional import dropout, linear

from lightning_ecd.checks import at_least
from lightning_ecd.randomness import uniforms


class Jet(NamedTuple):
    """A value with its derivatives.

    Attributes:
        value: (N, H).
        slopes: Derivatives along P directions, (P, N, H) or (P, 1, H); None: not
            needed further on.
        bend: Sum of the second derivatives along the directions, (N, H); None: zero.
    """

    value: Tensor
    slopes: Tensor | None
    bend: Tensor | None


class Derivatives(NamedTuple):
    """What `laplacian` returns, for N points and m outputs of the network.

    Attributes:
        value: (N, m).
        laplacian: (N, m).
        gradient: (P, N, m), the derivative along every direction; None: not asked for.
    """

    value: Tensor
    laplacian: Tensor
    gradient: Tensor | None


def laplacian(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    directions: Tensor | None = None,
    gradient: bool = False,
) -> Derivatives:
    r"""Return a network's value, Laplacian and, if asked for, gradient.

    Chains of linear layers, smooth activations, dropout and residual blocks propagate
    forward; any other network is differentiated by `torch.func`, along one direction
    after the other.

    Args:
        network: Maps (N, D) to (N, m), every row by itself.
        x: Points, (N, D).
        directions: Directions v_p of differentiation, (P, N, D) or (P, 1, D): instead
            of the Laplacian :math:`\sum_p v_p^T (\nabla\nabla u) v_p`, for instance
            Hutchinson's estimate by `probes`. None: the unit vectors.
        gradient: Whether to return the derivatives along the directions too.

    Example:
        >>> from torch import nn
        >>> class Square(nn.Module):
        ...     def forward(self, x):
        ...         return (x**2).sum(1, keepdim=True)
        >>> laplacian(Square(), torch.ones(1, 3)).laplacian
        tensor([[6.]])
    """
    if directions is None:
        unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        directions = unit.unsqueeze(1)
    if isinstance(network, nn.Module) and propagates(network):
        return _propagated(network, x, directions, gradient)
    return _by_autograd(network, x, directions, gradient)


def probes(x: Tensor, number: int, seed: int, *counters: int) -> Tensor:
    r"""Return random directions whose second derivatives sum to the Laplacian.

    Hutchinson's estimator: signs divided by the root of their number, independent at
    every point; the mean over the draws is the Laplacian.

    Args:
        x: Points, (N, D).
        number: Of directions, P at least 1.
        seed: Of the draws, with the counters.
        counters: Such as the step.

    Returns:
        Directions (P, N, D).

    Reference:
        M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix
        for Laplacian smoothing splines", Communications in Statistics 19 (1990).
    """
    at_least(1, number=number)
    draws = uniforms(x.new_empty(number, *x.shape), seed, *counters)
    return draws.lt(0.5).to(x.dtype).mul_(2).sub_(1).mul_(number**-0.5)


# -- activations ---------------------------------------------------------------------

#: Yields the first three derivatives of sigma at z, where a = sigma(z).
Slopes = Callable[[Tensor, Tensor], Iterator[Tensor]]


def _tanh(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    first = 1 - a * a
    yield first
    yield first * a * -2
    yield torch.addcmul(4 * first, first, first, value=-6)


def _sigmoid(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    first = torch.addcmul(a, a, a, value=-1)
    yield first
    yield torch.addcmul(first, first, a, value=-2)
    yield torch.addcmul(first, first, first, value=-6)


def _softplus(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    # torch's softplus is the identity from 20 on
    logistic = torch.where(z > 20, 1.0, torch.sigmoid(z))
    yield logistic
    yield from _sigmoid(z, logistic)


def _silu(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    logistic = torch.sigmoid(z)
    first, second, third = _sigmoid(z, logistic)
    yield logistic + z * first
    yield 2 * first + z * second
    yield 3 * second + z * third


def _gelu(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    density = torch.exp(-0.5 * z * z) * (2 * torch.pi) ** -0.5
    yield 0.5 * (1 + torch.erf(z * 0.5**0.5)) + z * density
    yield density * (2 - z * z)
    yield density * z * (z * z - 4)


def _relu(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    yield (z > 0).to(z.dtype)
    yield torch.zeros_like(z)
    yield torch.zeros_like(z)


_ACTIVATIONS: dict[type[nn.Module], Slopes] = {
    nn.GELU: _gelu,
    nn.ReLU: _relu,
    nn.SiLU: _silu,
    nn.Sigmoid: _sigmoid,
    nn.Softplus: _softplus,
    nn.Tanh: _tanh,
}


class _Activation(torch.autograd.Function):
    """An activation of a jet; its backward can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor,
        slopes: Tensor,
        bend: Tensor | None,
        module: nn.Module,
        wanted: bool,
    ) -> Any:
        """Return value, slopes if wanted, and bend."""
        a = module(value)
        first, second = islice(_ACTIVATIONS[type(module)](value, a), 2)
        bent = second * _dot(slopes, slopes)
        if bend is not None:
            bent = torch.addcmul(bent, first, bend)
        return a, first * slopes if wanted else None, bent

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what backward needs; a is the next layer's input and costs nothing."""
        value, slopes, bend, ctx.module, _ = inputs
        ctx.save_for_backward(value, slopes, bend, output[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of value, slopes and bend."""
        value, slopes, bend, a = ctx.saved_tensors
        of_value, of_slopes, of_bend = grads
        first, second, third = islice(_ACTIVATIONS[type(ctx.module)](value, a), 3)
        inner = third * _dot(slopes, slopes)
        if bend is not None:
            inner = torch.addcmul(inner, second, bend)
        to_value = torch.addcmul(first * of_value, inner, of_bend)
        factor = 2 * second * of_bend
        shared = slopes.shape[1] < len(value)  # equal at all points
        to_slopes = (factor.sum(0) if shared else factor) * slopes
        if of_slopes is not None:
            to_value = torch.addcmul(to_value, second, _dot(of_slopes, slopes))
            if shared:  # one direction after the other: its product stays in the cache
                sums = [(first * slope).sum(0, keepdim=True) for slope in of_slopes]
                to_slopes = to_slopes + torch.stack(sums)
            elif torch.is_grad_enabled():  # to be differentiated again
                to_slopes = torch.addcmul(to_slopes, first, of_slopes)
            else:
                to_slopes = to_slopes.addcmul_(first, of_slopes)
        to_bend = None if bend is None else first * of_bend
        return to_value, to_slopes, to_bend, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum over directions of a b, (N, H): its sum stays in the cache."""
    total = a[0] * b[0]
    for one, other in zip(a[1:], b[1:], strict=True):
        total = torch.addcmul(total, one, other)
    return total


# -- layers --------------------------------------------------------------------------

#: Maps a module, a jet and whether slopes are needed further on to a jet.
Rule = Callable[[Any, Jet, bool], Jet]


def _linear(layer: nn.Linear, jet: Jet, wanted: bool) -> Jet:
    value, slopes, bend = jet
    return Jet(
        linear(value, layer.weight, layer.bias),
        linear(slopes, layer.weight) if wanted and slopes is not None else None,
        None if bend is None else linear(bend, layer.weight),
    )


def _activated(layer: nn.Module, jet: Jet, wanted: bool) -> Jet:
    return Jet(*_Activation.apply(*jet, layer, wanted))


def _dropped(layer: nn.Dropout, jet: Jet, wanted: bool) -> Jet:
    mask = dropout(torch.ones_like(jet.value), layer.p, layer.training)
    value, slopes, bend = jet
    return Jet(
        value * mask,
        None if slopes is None else slopes * mask,
        None if bend is None else bend * mask,
    )


def _unchanged(layer: nn.Identity, jet: Jet, wanted: bool) -> Jet:
    return jet


def chain(layers: nn.Sequential, jet: Jet, wanted: bool) -> Jet:
    """Propagate a jet through a chain, slopes only as far as they are needed."""
    rest = list(layers)
    for layer in layers:
        rest.pop(0)
        onward = wanted or any(not isinstance(later, _STRAIGHT) for later in rest)
        jet = _RULES[_kind(layer)](layer, jet, onward)
    return jet


_STRAIGHT = (nn.Linear, nn.Dropout, nn.Identity)
_RULES: dict[type[nn.Module], Rule] = {
    nn.Sequential: chain,
    nn.Linear: _linear,
    nn.Dropout: _dropped,
    nn.Identity: _unchanged,
    **dict.fromkeys(_ACTIVATIONS, _activated),
}


def register(kind: type[nn.Module], rule: Rule) -> None:
    """Add a rule for modules of exactly one class.

    Args:
        kind: The class.
        rule: Maps (module, jet, wanted) to a jet, whose slopes may be None unless
            wanted; by operations that autograd knows.
    """
    _RULES[kind] = rule


def register_activation(kind: type[nn.Module], slopes: Slopes) -> None:
    """Add an activation.

    Args:
        kind: Its class.
        slopes: Yields its first three derivatives, given its input and output.
    """
    _ACTIVATIONS[kind] = slopes
    register(kind, _activated)


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the class that decides what a module computes."""
    kind = type(module)
    return nn.Sequential if kind.forward is nn.Sequential.forward else kind


def propagates(network: nn.Module) -> bool:
    """Return whether every layer has a rule: else autograd differentiates."""
    hooked = network._forward_hooks or network._forward_pre_hooks
    return (
        _kind(network) in _RULES
        and not hooked
        and getattr(network, "approximate", "none") == "none"  # GELU
        and getattr(network, "beta", 1) == 1  # Softplus
        and getattr(network, "threshold", 20) == 20
        and all(propagates(child) for child in network.children())
    )


def _propagated(
    network: nn.Module, x: Tensor, directions: Tensor, gradient: bool
) -> Derivatives:
    jet = Jet(x, directions, None)
    value, slopes, bend = _RULES[_kind(network)](network, jet, gradient)
    if gradient:
        assert slopes is not None
        slopes = slopes.expand(-1, len(x), -1)
    return Derivatives(value, torch.zeros_like(value) if bend is None else bend, slopes)


def _by_autograd(
    network: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, gradient: bool
) -> Derivatives:
    """Differentiate backward twice, output by output."""
    value = network(x)
    slopes, bends = [], []
    for output in range(value.shape[1]):
        pointwise = grad(lambda y, k=output: network(y)[:, k].sum())
        ascent, pull = cast(tuple[Tensor, Any], vjp(pointwise, x))
        columns = [(pull(v)[0] * v).sum(1) for v in directions.expand(-1, *x.shape)]
        bends.append(torch.stack(columns).sum(0))
        slopes.append((ascent * directions).sum(2))
    along = torch.stack(slopes, 2) if gradient else None
    return Derivatives(value, torch.stack(bends, 1), along)
