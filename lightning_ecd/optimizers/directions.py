r"""What moves along few random directions: compartments, bases, workers.

========  ====================  ==================================================
symbol    variable              shape and meaning
========  ====================  ==================================================
w         ``x``                 (n,) parameters
g         ``g``                 (n,) gradient
φ_i       ``rows`` of P         (d, n) directions of a compartment
c, G      ``c``                 (d,) coordinates: φ_i·g
s         ``s``                 (n,) Σ c_i φ_i, the direction of the step
t         ``system["steps"]``   steps made
R         ``redraw_every``      steps that a basis lives
========  ====================  ==================================================
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, distributed

from lightning_ecd.bases import BASES, Basis, Compartment, Explicit, Projector, divide
from lightning_ecd.bases.compartments import table
from lightning_ecd.checks import within
from lightning_ecd.errors import UserError
from lightning_ecd.flat import FlatParameters
from lightning_ecd.optimizers.base import Descent, ParamsT
from lightning_ecd.optimizers.ranks import rank, ranks
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.randomness import mixed

BasisName = Literal[
    "normal",
    "rademacher",
    "uniform",
    "bernoulli_reference",
    "lognormal",
    "orthonormal",
    "srht",
    "countsketch",
    "in_law",
    "orthonormal_in_law",
]
Division = Literal["one", "layers", "size", "type", "linear", "superlinear"]
Normalization = Literal["auto", "unbiased", "row", "tensor", "mean", "mean_sq"]
Transformation = Literal["none", "norm", "ranks"]

FAMILY = Traits(
    family="random bases",
    summary="",
    paper="Gressmann, Eaton-Rosen, Luschi, NeurIPS 2020, arXiv 2011.04720",
    state="",
    draws_noise=True,
)

#: Bits of a counter that tell directions apart; those above tell redraws apart.
_DIRECTION = 32


class Directions(Descent):
    """Moves along directions of random bases, one for every compartment.

    Bases are functions of (seed, redraw, worker, compartment, direction): they are
    made when they are needed, by whoever needs them.

    Args:
        params: Parameters or groups; a group with `dimensions` of its own is a
            compartment, all others are divided as the arguments say.
        defaults: Hyper-parameters.
        explicit: Rows (d, n) as a function of (redraw, compartment), in place of a
            basis. Not in checkpoints: give it again.
    """

    #: What groups may have of their own.
    own: tuple[str, ...] = ("lr", "dimensions")

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        explicit: Callable[[int, int], Tensor] | None = None,
    ):
        self.explicit = explicit
        self._forget()
        super().__init__(params, defaults)

    @property
    def shared(self) -> tuple[str, ...]:  # type: ignore[override]
        """Hyper-parameters that all groups share."""
        return tuple(name for name in self.defaults if name not in self.own)

    def _forget(self) -> None:
        """Forget what follows from parameters, seeds and counters."""
        self._compartments: list[Compartment] | None = None
        self._kept: dict[tuple[int, int], list[Projector]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "explicit": self.explicit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.explicit = state.pop("explicit", None)
        self._forget()
        super().__setstate__(state)

    def _rebound(self, former: FlatParameters | None) -> None:
        self._forget()
        if ranks() > 1 and self.explicit is None:
            self._compare()

    def _compare(self) -> None:
        """Refuse processes that would make different directions from one counter.

        They would drift apart without a sign: normals in C and in torch differ.
        """
        head = self.param_groups[0]
        if not BASES[head["basis"]].rows_exist:
            return
        like = self.x.new_zeros(64)
        basis = BASES[head["basis"]](like, range(1), head["seed"])
        mine = basis.expand(torch.ones(1).to(like)).float()
        every = [torch.empty_like(mine) for _ in range(ranks())]
        distributed.all_gather(every, mine)
        if not all(torch.equal(other, mine) for other in every):
            raise UserError(
                "the processes draw different directions: seed, type of device and the "
                "variable LIGHTNING_ECD_KERNELS must be the same in all of them"
            )

    @property
    def compartments(self) -> list[Compartment]:
        """The compartments, in the order of the parameters' groups."""
        if self._compartments is None:
            head, default = self.param_groups[0], self.count(self.defaults)
            own: list[Compartment] = []
            tensors: list[tuple[int, int, torch.Size]] = []  # number, place, shape
            place = number = 0
            for group in self.param_groups:
                single = Compartment(self.count(group))
                for p in group["params"]:
                    if not p.requires_grad:
                        continue
                    if single.dimensions == default:
                        tensors.append((number, place, p.shape))
                    else:
                        single.pieces.append(slice(place, place + p.numel()))
                        single.tensors.append(number)
                    place, number = place + p.numel(), number + 1
                own.extend([single] if single.size else [])
            divided = divide(
                [shape for _, _, shape in tensors],
                default,
                head["compartments"],
                head["compartment_size"],
                head["split_dimensions"],
                [place for _, place, _ in tensors],
            )
            for compartment in divided:
                compartment.tensors = [tensors[i][0] for i in compartment.tensors]
            self._compartments = [*divided, *own]
        return self._compartments

    def count(self, group: Mapping[str, Any]) -> int:
        """Return how many directions a group asks for."""
        return group["dimensions"]

    def describe(self) -> str:
        """Return a map of the compartments and the compression they make."""
        names = []
        for group in self.param_groups:
            given = group.get("param_names") or [None] * len(group["params"])
            for name, p in zip(given, group["params"], strict=True):
                if p.requires_grad:
                    names.append(name or "x".join(map(str, p.shape)) or "scalar")
        return table(self.compartments, names)

    # -- bases ---------------------------------------------------------------------

    def redraws(self) -> int:
        """Return how often the bases have been drawn anew before this step."""
        every = self.param_groups[0]["redraw_every"]
        return self.system.get("steps", 0) // every if every else 0

    def projectors(self, worker: int = 0) -> list[Projector]:
        """Return the directions of every compartment in this step.

        Args:
            worker: Whose; 0 if all share theirs.
        """
        head, version = self.param_groups[0], self.redraws()
        if (version, worker) not in self._kept:
            if not any(key[0] == version for key in self._kept):
                self._kept = {}
            self._kept[version, worker] = [
                self._projector(k, part, worker, version)
                for k, part in enumerate(self.compartments)
            ]
        found = self._kept[version, worker]
        if head["redraw_every"] == 1 or not BASES[head["basis"]].rows_exist:
            self._kept = {}  # nothing is used twice
        return found

    def _projector(
        self, k: int, compartment: Compartment, worker: int, version: int
    ) -> Projector:
        head = self.param_groups[0]
        normalize = head["normalize"]
        like = compartment.of(self.x)
        if self.explicit is not None:
            rows = self.explicit(version, k).to(like)
            given = [(part, Explicit(rows[:, part])) for part in self._blocks(k)]
            return Projector(given, normalize, len(self.x))
        first = version << _DIRECTION
        counters: Sequence[int] = range(first, first + compartment.dimensions)
        if (counts := self._redrawn(k)) is not None:
            pairs = zip(counters, counts, strict=True)
            counters = [i + (count << _DIRECTION) for i, count in pairs]
        blocks: list[tuple[slice, Basis]] = []
        for b, part in enumerate(self._blocks(k)):
            seed = mixed(head["seed"], worker, k, b)
            basis: Basis = BASES[head["basis"]](like[part], counters, seed)
            if head["stored"] and not basis.structured:
                basis = Explicit(basis.rows(0, basis.d))
            blocks.append((part, basis))
        return Projector(blocks, normalize, len(self.x))

    def _blocks(self, k: int) -> list[slice]:
        """Return the parts of a compartment's vector that have a basis each."""
        compartment = self.compartments[k]
        if self.param_groups[0]["normalize"] != "tensor":
            return [slice(0, compartment.size)]
        blocks, start = [], 0
        for piece in compartment.pieces:
            stop = start + piece.stop - piece.start
            if stop > start:
                blocks.append(slice(start, stop))
            start = stop
        return blocks

    def _redrawn(self, k: int) -> Sequence[int] | None:
        """Return how often every direction has been drawn anew by itself, if any."""
        return None

    # -- coordinates ---------------------------------------------------------------

    def split(self, c: Tensor) -> list[Tensor]:
        """Return the coordinates (Σ d_k,) of all compartments, one by one."""
        return list(c.split([part.dimensions for part in self.compartments]))

    def projected(self, projectors: list[Projector], g: Tensor) -> Tensor:
        """Return the coordinates of a vector, (Σ d_k,)."""
        pairs = zip(projectors, self.compartments, strict=True)
        found = [projector.project(part.of(g)) for projector, part in pairs]
        return found[0] if len(found) == 1 else torch.cat(found)

    def expanded(self, projectors: list[Projector], c: Tensor) -> Tensor:
        """Return Σ c_i φ_i of all compartments, shape (n,)."""
        if len(projectors) == 1 and len(self.compartments[0].runs) == 1:
            return projectors[0].expand(c)
        s = torch.empty_like(self.x, dtype=torch.promote_types(c.dtype, self.x.dtype))
        triples = zip(projectors, self.compartments, self.split(c), strict=True)
        for projector, part, own in triples:
            part.write(s, projector.expand(own).to(s.dtype))
        return s

    # -- workers -------------------------------------------------------------------

    def workers(self) -> range:
        """Return the numbers of this process's workers."""
        each = self.param_groups[0].get("workers", 1)
        return range(rank() * each, (rank() + 1) * each)

    def exchanged(self, own: list[Tensor]) -> list[Tensor]:
        """Return the coordinates of all workers, given those of this process.

        Gathered, not reduced: the same sums in the same order everywhere.
        """
        if ranks() == 1:
            return own
        mine = torch.stack(own)
        every = [torch.empty_like(mine) for _ in range(ranks())]
        distributed.all_gather(every, mine)
        self.info["bytes_sent"] = float(mine.numel() * mine.element_size())
        return [row for rows in every for row in rows]


def require(cls: type, head: Mapping[str, Any]) -> None:
    """Refuse words that a constructor does not allow, and lengths out of range.

    Args:
        cls: The class, whose constructor's annotations say what is allowed.
        head: Its hyper-parameters.
    """
    for name, parameter in signature(cls, eval_str=True).parameters.items():
        hint = parameter.annotation
        kinds = [
            kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal
        ]
        words = [word for kind in kinds for word in get_args(kind)]
        numeric = float in get_args(hint) and type(head[name]) in (int, float)
        if words and head[name] not in words and not numeric:
            raise ValueError(
                f"{name} must be one of {', '.join(words)}, got {head[name]!r}"
            )
    if not isinstance(head["normalize"], str):
        within("(0, inf)", normalize=head["normalize"])
