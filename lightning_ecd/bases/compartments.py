"""Which parameters share a basis: compartments with directions of their own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass
class Compartment:
    """Parameters that share a basis.

    Attributes:
        dimensions: Directions d.
        pieces: Parts of the whole vector, one for every (part of a) tensor.
        tensors: The number of the tensor that each piece belongs to.
    """

    dimensions: int
    pieces: list[slice] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._runs: list[slice] | None = None

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def runs(self) -> list[slice]:
        """The pieces, those that touch as one."""
        if self._runs is None:
            runs: list[slice] = []
            for piece in self.pieces:
                if runs and runs[-1].stop == piece.start:
                    runs[-1] = slice(runs[-1].start, piece.stop)
                else:
                    runs.append(piece)
            self._runs = runs
        return self._runs

    def of(self, vector: Tensor) -> Tensor:
        """Return this compartment's part of a whole vector; a view if it is one run."""
        if len(self.runs) == 1:
            return vector[self.runs[0]]
        return torch.cat([vector[run] for run in self.runs])

    def write(self, vector: Tensor, own: Tensor) -> None:
        """Write this compartment's part of a whole vector."""
        start = 0
        for run in self.runs:
            stop = start + run.stop - run.start
            vector[run] = own[start:stop]
            start = stop


#: For every tensor: a key (tensors of one key share), compartments, directions of each.
_Plan = Iterator[tuple[int, int, int]]


def divide(
    shapes: Sequence[torch.Size],
    dimensions: int,
    mode: str = "one",
    size: int = 30_000,
    split_dimensions: bool = False,
    starts: Sequence[int] | None = None,
) -> list[Compartment]:
    """Divide tensors into compartments.

    Args:
        shapes: Of the tensors, in the order of the vector.
        dimensions: Directions d of a compartment.
        mode: "one": all in one. "layers": `size` layers each, a layer being a tensor
            of two or more dimensions and the vectors behind it. "size": tensors are
            gathered, and larger ones cut, into compartments of about `size`
            parameters. "type": all vectors in one, every other tensor in its own.
            "linear", "superlinear": every tensor its own, with max(⌈n/d⌉, 10) or
            max(⌈n^1.2/d⌉, 10) directions, cut where it is larger than `size`.
        size: See `mode`.
        split_dimensions: With "size", share the d directions among compartments.
        starts: Places of the tensors in the vector; None: one after the other.

    Returns:
        Compartments, in the order of their first tensors. Derived numbers of
        directions are even, as released.

    Example:
        >>> shapes = [torch.Size([128, 784]), torch.Size([128])]
        >>> [part.dimensions for part in divide(shapes, 1000, "linear", 10**6)]
        [102, 10]
    """
    if mode == "size":
        plan = _gathered(shapes, dimensions, size, split_dimensions)
    elif mode in ("linear", "superlinear"):
        plan = _proportional(shapes, dimensions, size, 1.2 if mode[0] == "s" else 1.0)
    else:
        plan = ((key, 1, dimensions) for key in _KEYS[mode](shapes, size))
    if starts is None:
        starts = list(accumulate((s.numel() for s in shapes), initial=0))[:-1]
    found: dict[int, list[Compartment]] = {}
    for tensor, (key, parts, d) in enumerate(plan):
        to = found.setdefault(key, [Compartment(d) for _ in range(parts)])
        start, stop = starts[tensor], starts[tensor] + shapes[tensor].numel()
        share = math.ceil((stop - start) / len(to))
        for i, compartment in enumerate(to):
            first = min(start + i * share, stop)
            compartment.pieces.append(slice(first, min(first + share, stop)))
            compartment.tensors.append(tensor)
    return [part for parts in found.values() for part in parts if part.size]


def _one(shapes: Sequence[torch.Size], size: int) -> Iterator[int]:
    return (0 for _ in shapes)


def _layers(shapes: Sequence[torch.Size], size: int) -> Iterator[int]:
    begun = accumulate(int(len(shape) > 1) for shape in shapes)
    return (max(layers - 1, 0) // size for layers in begun)


def _by_type(shapes: Sequence[torch.Size], size: int) -> Iterator[int]:
    return (i if len(shape) > 1 else -1 for i, shape in enumerate(shapes))


_KEYS = {"one": _one, "layers": _layers, "type": _by_type}


def _gathered(
    shapes: Sequence[torch.Size], d: int, size: int, split_dimensions: bool
) -> _Plan:
    """Fill a compartment until the next tensor would overflow it; cut large ones."""
    if split_dimensions:
        total = sum(shape.numel() for shape in shapes)
        d = _even(math.ceil(d / math.ceil(total / size)))
    key, filled = -1, 0
    for shape in shapes:
        parts = max(math.ceil(shape.numel() / size), 1)
        filled += shape.numel()
        if parts > 1 or key < 0 or filled > size:
            key += 1
        if filled > size:
            filled = shape.numel()
        yield key, parts, d


def _proportional(
    shapes: Sequence[torch.Size], factor: int, size: int, power: float
) -> _Plan:
    """Let directions grow with the tensors."""
    for tensor, shape in enumerate(shapes):
        parts = max(math.ceil(shape.numel() / size), 1)
        d = max(math.ceil(shape.numel() ** power / factor), 10)
        yield tensor, parts, _even(math.ceil(d / parts))


def table(compartments: Sequence[Compartment], names: Sequence[str]) -> str:
    """Return a map of compartments, a line each, and the compression they make.

    Args:
        compartments: All of them.
        names: Of the tensors.
    """
    lines = []
    for i, compartment in enumerate(compartments):
        parts = [
            f"{names[tensor]}[{piece.stop - piece.start}]"
            for tensor, piece in zip(
                compartment.tensors, compartment.pieces, strict=True
            )
        ]
        lines.append(
            f"compartment {i}: {compartment.dimensions} directions for "
            f"{compartment.size} parameters: {', '.join(parts)}"
        )
    coordinates = sum(compartment.dimensions for compartment in compartments)
    size = sum(compartment.size for compartment in compartments)
    lines.append(
        f"{coordinates} coordinates for {size} parameters: 1 for "
        f"{size / max(coordinates, 1):.5g}"
    )
    return "\n".join(lines)


def _even(number: int) -> int:
    return number + number % 2
