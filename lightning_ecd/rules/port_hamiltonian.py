"""The port-Hamiltonian optimizer in its principled form: passive by construction."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ecd import flat
from lightning_ecd.checks import above, at_least, one_of
from lightning_ecd.flat import Layout
from lightning_ecd.rules.features import log_and_sign
from lightning_ecd.rules.rule import Context, State, UpdateRule

Integrator = Literal["discrete_gradient", "semi_implicit"]

#: The most Newton steps, each kept within a bracket of the root: on the CPU, which
#: stops when all coordinates have settled (after 3 or 4), and where asking would wait.
_STEPS, _STEPS_ELSEWHERE = 60, 20


class Coefficients(NamedTuple):
    """Of all modes, each broadcasting to (..., n, k).

    Attributes:
        a: Height of the potential's saturating part, >= 0.
        b: Its inverse width, >= 0.
        c: Stiffness of its quadratic part, >= 0.
        m: Inverse mass, > 0.
        s: The only entry of J.
        rqq: Of R, which is positive semidefinite.
        rqp: Of R.
        rpp: Of R.
        Gq: The port on q.
        Gp: The port on p.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    m: Tensor
    s: Tensor
    rqq: Tensor
    rqp: Tensor
    rpp: Tensor
    Gq: Tensor
    Gp: Tensor


class PortHamiltonianRule(UpdateRule):
    r"""A learned port-Hamiltonian system, driven by the gradient through its port.

    Every coordinate carries k modes :math:`z = (q, p)`, two numbers each, z = 0 at the
    start, with a learned energy

    .. math::
        H = \sum_j a_j \Big(\sqrt{1 + b_j^2 q_j^2} - 1\Big) + \frac{c_j}2 q_j^2
        + \frac{m_j}2 p_j^2

    With the input :math:`y = -\nabla f`, skew-symmetric J (one number s per mode),
    :math:`R = B B^T` and a learned step h:

    .. math::
        z' = z + h \big((J - R)\, \overline{\nabla} H + G y\big), \qquad
        u = h\, G^T\, \overline{\nabla} H

    The discrete gradient :math:`\overline\nabla H` (difference quotient in q, midpoint
    in p) makes the energy balance exact whatever the step,

    .. math::
        H(z') - H(z) = -h\, \overline\nabla H^T R\, \overline\nabla H + u y,

    so that without input H never rises: the rule cannot drive itself. The balance
    holds for any s, B and G that are known before the step; with `hidden` > 0 a small
    network chooses their sizes, coordinate by coordinate, from gradient and momenta.
    The heavy ball is the case k = 1, a = c = 0, s = 0, R = diag(0, r), G = (0, 1).

    Args:
        modes: k, at least 1.
        hidden: Units of the network that scales s, B and G; 0: constants.
        factor: P of that network's `log_and_sign` features, > 0.
        integrator: "discrete_gradient", or the cheap "semi_implicit": Euler's step,
            p first, then q with the new p; H then stays bounded, no more.

    Note:
        Modes are independent of each other: a coupling would ask for a k x k system
        of equations per coordinate. The difference quotient of the potential has a
        closed form without cancellation, and the implicit equation one root, between
        -q and the point that q would reach without force.

    Reference:
        Port-Hamiltonian systems: A. van der Schaft, D. Jeltsema, "Port-Hamiltonian
        systems theory: an introductory overview", Found. Trends Syst. Control 2014.
        Discrete gradients: R. I. McLachlan, G. R. W. Quispel, N. Robidoux, "Geometric
        integration using discrete gradients", Phil. Trans. R. Soc. A 1999. The rule
        that they make is this project's, after arXiv 2111.00565.
    """

    def __init__(
        self,
        modes: int = 2,
        hidden: int = 0,
        factor: float = 10.0,
        integrator: Integrator = "discrete_gradient",
    ):
        super().__init__(
            modes=modes, hidden=hidden, factor=factor, integrator=integrator
        )
        at_least(1, modes=modes)
        at_least(0, hidden=hidden)
        above(0, factor=factor)
        one_of(get_args(Integrator), integrator=integrator)
        self.modes, self.factor, self.integrator = modes, factor, integrator
        # a, b, c, m behind a softplus; b and m start near 1, a and c near .05
        center = torch.tensor([-3.0, 0.5, -3.0, 0.5]).unsqueeze(1)
        self.energy = nn.Parameter(center + torch.randn(4, modes) * 0.3)
        self.s = nn.Parameter(torch.rand(modes) * 0.3)
        self.B = nn.Parameter(torch.rand(modes, 2, 2) * 0.3 + torch.eye(2) * 0.3)
        self.G = nn.Parameter(torch.tensor([0.1, 1.0]) + torch.randn(modes, 2) * 0.1)
        self.log_h = nn.Parameter(torch.zeros(()))
        self.gates: nn.Sequential | None = None
        if hidden:
            last = nn.Linear(hidden, 3 * modes)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(2 + 2 * modes, hidden)
            self.gates = nn.Sequential(first, nn.Tanh(), last)
        self.state_size = 2 * modes

    def initial(self, x: Tensor, layout: Layout) -> State:  # noqa: D102
        zeros = x.new_zeros(*x.shape, self.modes)
        return {"q": zeros.clone(), "p": zeros.clone()}

    def forward(  # noqa: D102
        self, grad: Tensor, state: State, context: Context
    ) -> tuple[Tensor, State]:
        q, p, y = state["q"], state["p"], -grad.unsqueeze(-1)
        of, h = self.coefficients(grad, p), self.log_h.exp()
        step = _discrete if self.integrator == "discrete_gradient" else _semi_implicit
        q, p, dHq, dHp = step(of, q, p, y, h)
        update = h * (of.Gq * dHq + of.Gp * dHp).sum(-1)
        return update, {"q": q, "p": p}

    def coefficients(self, grad: Tensor, p: Tensor) -> Coefficients:
        """Return the coefficients of all modes.

        Args:
            grad: Shape (..., n).
            p: The momenta before the step, shape (..., n, k).
        """
        a, b, c, m = F.softplus(self.energy).unbind(0)
        s, B, Gq, Gp = self.s, self.B, *self.G.unbind(-1)
        rqq, rqp, rpp = (
            (B[:, i] * B[:, j]).sum(-1) for i, j in ((0, 0), (0, 1), (1, 1))
        )
        if self.gates is not None:
            seen = log_and_sign(grad, self.factor), log_and_sign(p, self.factor)
            gates = self.gates(torch.cat([seen[0], seen[1].flatten(-2)], -1)).exp()
            turn, damp, port = gates.chunk(3, -1)
            s, rqq, rqp, rpp = s * turn, rqq * damp, rqp * damp, rpp * damp
            Gq, Gp = Gq * port, Gp * port
        return Coefficients(a, b, c, m, s, rqq, rqp, rpp, Gq, Gp)

    def hamiltonian(self, state: State) -> Tensor:
        """Return the energy H of every coordinate, shape (..., n)."""
        a, b, c, m = F.softplus(self.energy).unbind(0)
        q, p = state["q"], state["p"]
        potential = a * (torch.hypot(torch.ones_like(q), b * q) - 1) + c * q * q / 2
        return (potential + m * p * p / 2).sum(-1)


def _discrete(
    of: Coefficients, q: Tensor, p: Tensor, y: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q', p' and the discrete gradient of H between z and z'.

    The midpoint of p is linear in the potential's quotient dV; put into the equation
    of q it leaves q' = free - kappa dV(q, q'), with kappa >= 0 since R >= 0.
    """
    e = 1 / (1 + h * of.m * of.rpp / 2)
    pushed = e * (p + h / 2 * of.Gp * y)
    free = q + h * ((of.s - of.rqp) * of.m * pushed + of.Gq * y)
    kappa = h * (of.rqq + h / 2 * of.m * e * (of.s**2 - of.rqp**2))
    with torch.no_grad():
        root = _root(of, q, free, kappa)
    # One more Newton step, whose slopes are those of the root by the implicit
    # function theorem.
    quotient, slope = _quotient(of, q, root)
    residual = root - free + kappa * quotient
    q_new = root - residual / (1 + kappa * slope).detach()
    dV = _quotient(of, q, q_new)[0]
    middle = pushed - e * h / 2 * (of.s + of.rqp) * dV
    return q_new, 2 * middle - p, dV, of.m * middle


def _root(of: Coefficients, q: Tensor, free: Tensor, kappa: Tensor) -> Tensor:
    """Return the root x of x - free + kappa dV(q, x): it lies between -q and free."""
    free = free.broadcast_to(torch.broadcast_shapes(free.shape, q.shape))
    low, high = torch.minimum(-q, free), torch.maximum(-q, free)
    slope = _quotient(of, q, -q)[1]
    x = torch.clamp((free - kappa * slope * q) / (1 + kappa * slope), low, high)
    moved = high - low
    for _ in range(_STEPS if flat.on_host(q) else _STEPS_ELSEWHERE):
        quotient, slope = _quotient(of, q, x)
        residual = x - free + kappa * quotient
        step = residual / (1 + kappa * slope)
        if flat.on_host(q) and _settled(step, x):
            break
        low = torch.where(residual < 0, x, low)
        high = torch.where(residual > 0, x, high)
        # Newton's step if it is half the last one at most, else half the bracket
        new, middle = x - step, (low + high) / 2
        bisect = (new < low) | (new > high) | (2 * step.abs() > moved)
        new = torch.where(bisect, middle, new)
        x, moved = new, (new - x).abs()
    return x


def _settled(step: Tensor, x: Tensor) -> bool:
    """Return whether no step reaches further than rounding does."""
    size = 8 * torch.finfo(x.dtype).eps * (x.abs() + 1e-30)
    try:
        return bool((step.abs() <= size).all())
    except RuntimeError:  # within vmap there are no numbers to ask
        return False


def _quotient(of: Coefficients, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (V(x) - V(q))/(x - q), finite at x = q, and its slope in x."""
    ones = torch.ones_like(q)
    here, there = torch.hypot(ones, of.b * q), torch.hypot(ones, of.b * x)
    weight = of.a * of.b**2 / (here + there)
    bent = weight * (q + x) * of.b**2 * x / (there * (here + there))
    return (of.c / 2 + weight) * (q + x), of.c / 2 + weight - bent


def _semi_implicit(
    of: Coefficients, q: Tensor, p: Tensor, y: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q', p' and the gradient of H at (q, p')."""
    dV = of.c * q + of.a * of.b**2 * q / torch.hypot(torch.ones_like(q), of.b * q)
    p = p + h * (-(of.s + of.rqp) * dV - of.rpp * of.m * p + of.Gp * y)
    q_new = q + h * (-of.rqq * dV + (of.s - of.rqp) * of.m * p + of.Gq * y)
    return q_new, p, dV, of.m * p
