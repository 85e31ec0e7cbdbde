"""The regimes of one problem side by side, step by step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ecd.theory.kernel import require_room
from lightning_ecd.theory.regimes import (
    Averaged,
    AveragedModes,
    Draw,
    Modes,
    Sampled,
    averaged,
    averaged_modes,
    sampled,
    spectral_diagonal,
)
from lightning_ecd.theory.schedules import Schedule
from lightning_ecd.theory.spectrum import from_kernel


class Companions:
    """Linearised, averaged and diagonal regimes from one kernel and output error.

    Args:
        K: Kernel (N, N); divided by λ_max/N of its own.
        d: Output error f_0 - y, (N,).
        rank: First modes whose moments the averaged regime follows; None: all, by
            products of N x N matrices; 0: leave the regime out.
        taus: τ of the diagonal regimes.
        memory: Bytes that N x N matrices may take.

    Attributes:
        spectrum: Of the normalised kernel.
        step: Steps made.

    Raises:
        UserError: If the matrices do not fit; it says what N does.
    """

    def __init__(
        self,
        K: Tensor,
        d: Tensor,
        rank: int | None = 100,
        taus: Sequence[float] = (1.0, -1.0),
        memory: float = 2**32,
    ):
        self.require_room(len(d), rank, memory)
        self.spectrum, self.U = from_kernel(K, d)
        self.K, self.d = (K / self.spectrum.scale).double(), d.double()
        self.rank = rank
        self.taus = torch.tensor(list(taus), dtype=torch.float64, device=d.device)

    def begin(self, schedule: Schedule, draw: Draw, runs: int = 1) -> None:
        """Start at step 0.

        Args:
            schedule: Of all steps, for the normalised kernel.
            draw: Mini-batches of the sampled runs, (R, b) for a step.
            runs: R; 0: none.
        """
        self.schedule, self.draw, self.step = schedule, draw, 0
        self.states: dict[str, Any] = {}
        if runs:
            self.states["linearized"] = Sampled.start(self.d, runs)
        if _whole(len(self.d), self.rank):
            self.states["averaged"] = Averaged.start(self.d)
        elif self.rank:
            self.states["averaged"] = AveragedModes.start(self.U, self.d, self.rank)
        if len(self.taus):
            self.states["diagonal"] = Modes.start(self.spectrum, len(self.taus))

    @staticmethod
    def require_room(N: int, rank: int | None, memory: float) -> None:
        """Raise a UserError that says what N fits, unless N samples do.

        Args:
            N: Samples.
            rank: See the class.
            memory: Bytes.
        """
        # at the most, K included: its eigenvectors; whole moments and their next step
        require_room(N, 12.5 if _whole(N, rank) else 5.5, memory)

    def losses(self) -> dict[str, Tensor]:
        """Return the present losses: of a regime's runs or settings, (R,) or ()."""
        N = self.spectrum.samples
        found: dict[str, Tensor] = {}
        for name, state in self.states.items():
            if name == "linearized":
                found[name] = state.d.square().mean(1) / 2
            elif isinstance(state, Averaged):
                found[name] = state.C.trace() / (2 * N)
            elif name == "averaged":
                rest = state.d[len(state.C) :].square().sum()
                found[name] = (state.C.trace() + rest) / (2 * N)
            else:
                sums = state.C.sum(1) / (2 * N)
                found |= {
                    f"tau_{tau:g}": loss
                    for tau, loss in zip(self.taus.tolist(), sums, strict=True)
                }
        return found

    def diagonals(self) -> dict[str, Tensor]:
        r"""Return the present second moments of every mode, (N,) for each regime.

        .. math:: E[(u_k \cdot d)^2], \qquad \textstyle\sum_k = 2 N\,\text{loss}

        The mean over the sampled runs; exact, or with a rank the first modes' and
        the squared means of the others; what the diagonal regimes say it is.
        """
        found: dict[str, Tensor] = {}
        for name, state in self.states.items():
            if name == "linearized":
                found[name] = (state.d @ self.U).square().mean(0)
            elif isinstance(state, Averaged):
                found[name] = torch.linalg.vecdot(state.C @ self.U, self.U, dim=0)
            elif name == "averaged":
                rest = state.d[len(state.C) :].square()
                found[name] = torch.cat([state.C.diagonal(), rest])
            else:
                names = [f"tau_{tau:g}" for tau in self.taus.tolist()]
                found |= dict(zip(names, state.C.clone(), strict=True))
        return found

    def advance(self, step: int) -> dict[str, Tensor]:
        """Go on to a step; return the losses there, as `losses` does."""
        steps = step - self.step
        if steps < 0:
            raise ValueError(f"step must be at least {self.step}, got {step}")
        for name, state in self.states.items() if steps else ():
            if name == "linearized":
                state, _ = sampled(self.K, state, self.schedule, self.draw, steps)
            elif isinstance(state, Averaged):
                state, _ = averaged(self.K, state, self.schedule, steps)
            elif name == "averaged":
                lam = self.spectrum.eigenvalues
                state, _ = averaged_modes(lam, self.U, state, self.schedule, steps)
            else:
                state, _ = spectral_diagonal(
                    self.spectrum, state, self.schedule, steps, tau2=self.taus
                )
            self.states[name] = state
        self.step = step
        return self.losses()

    def state_dict(self) -> dict[str, Any]:
        """Return the states as plain data."""
        states = {name: state._asdict() for name, state in self.states.items()}
        return {"step": self.step, "states": states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: If that has other regimes, or runs, ranks or samples of them.
        """
        if _shapes(saved["states"]) != _shapes(self.state_dict()["states"]):
            raise ValueError("the states are of other settings")
        self.step = saved["step"]
        for name, state in self.states.items():
            fields = {
                key: value.to(self.K.device) if torch.is_tensor(value) else value
                for key, value in saved["states"][name].items()
            }
            self.states[name] = type(state)(**fields)


def _shapes(states: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Return the shape of every tensor of the states, () of numbers."""
    return {
        (name, key): getattr(value, "shape", ())
        for name, fields in states.items()
        for key, value in fields.items()
    }


def _whole(N: int, rank: int | None) -> bool:
    """Return whether the averaged regime follows all moments of N samples."""
    return rank is None or rank >= N
