"""All parameters as views of one vector, all gradients as views of another.

An optimizer that works on two vectors needs neither loops over tensors nor copies:
``x`` holds the trainable parameters of every group one after the other, ``g`` their
gradients, and each ``p.data`` and ``p.grad`` is a view with the tensor's own shape
and strides (channels_last survives).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

#: Entries that one float32 sum may run over: 1024 equal ones are 8e-7 off.
_SHORTEST, _LONGEST = 256, 1024


def square_norm(v: Tensor) -> float | Tensor:
    """Return the sum of squares of a vector, accurate to 1e-6 at any length.

    ``torch.dot`` over 11 million float32 entries is 3e-4 off, over 200,000 equal
    ones 8e-5. Here no float32 sum is longer than one row or than torch's own
    cascaded ``sum``; the rest is float64.

    Args:
        v: Shape (n,), any float type.

    Returns:
        A float on the CPU, a 0-d float64 tensor (no waiting) elsewhere.
    """
    return dot(v, v)


def dot(a: Tensor, b: Tensor) -> float | Tensor:
    """Return the inner product of two vectors, as accurate as `square_norm`.

    Args:
        a: Shape (n,).
        b: Shape (n,).

    Returns:
        A float on the CPU, a 0-d float64 tensor elsewhere.

    Example:
        >>> dot(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """
    return number(_accurate_dot(a, b))


def number(scalar: Tensor) -> float | Tensor:
    """Return a 0-d tensor as a float on the CPU, as 0-d float64 elsewhere."""
    return scalar.item() if on_host(scalar) else scalar.double()


def _accurate_dot(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.float64:
        return torch.dot(a, b)
    if a.dtype != torch.float32:
        return _accurate_dot(a.float(), b.float())
    n = a.numel()
    if n < 2**16:
        return (a * b).sum()
    row, rest = _rows(n)
    if rest:
        tail = _float64(torch.dot(a[-rest:], b[-rest:]))
        return _accurate_rows(a[:-rest], b[:-rest], row).add_(tail)
    return _accurate_rows(a, b, row)


def _accurate_rows(a: Tensor, b: Tensor, row: int) -> Tensor:
    if a.data_ptr() == b.data_ptr():  # one pass, several times faster than vecdot
        norms = _float64(torch.linalg.vector_norm(a.view(-1, row), dim=1))
        return torch.dot(norms, norms)
    return _float64(torch.linalg.vecdot(a.view(-1, row), b.view(-1, row))).sum()


def _float64(v: Tensor) -> Tensor:
    """Return `v` in float64, on the CPU if the device has none."""
    return (v.cpu() if v.device.type == "mps" else v).double()


@lru_cache(maxsize=64)
def _rows(n: int) -> tuple[int, int]:
    """Return the length of rows to cut n entries into, and what is left over."""
    for row in range(_LONGEST, _SHORTEST, -1):
        if n % row == 0:
            return row, 0
    return 512, n % 512


def on_host(v: Tensor) -> bool:
    """Return whether reading a number out of `v` waits for nothing.

    MPS counts as host: it has no float64, and its queue must be waited for anyway.
    """
    return v.device.type in ("cpu", "mps")


@dataclass(frozen=True)
class Layout:
    """Shapes of tensors that lie one after the other in a flat vector.

    Args:
        shapes: Of every tensor.
        orders: Dimensions of every tensor from the slowest to the fastest in memory;
            None: in their own order.

    Example:
        >>> layout = Layout(((2, 3), (4,)))
        >>> [tuple(view.shape) for view in layout.views(torch.zeros(5, 10))]
        [(5, 2, 3), (5, 4)]
    """

    shapes: tuple[tuple[int, ...], ...]
    orders: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Layout":
        """Return the layout of dense tensors, each in its own memory order."""
        strides = [(p.shape, _dense_strides(p)) for p in tensors]
        return cls(
            tuple(tuple(shape) for shape, _ in strides),
            tuple(
                tuple(sorted(range(len(shape)), key=lambda d: -stride[d]))
                for shape, stride in strides
            ),
        )

    @property
    def sizes(self) -> list[int]:
        """Number of entries of every tensor."""
        return [math.prod(shape) for shape in self.shapes]

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the pieces (..., size) of a vector (..., n)."""
        return list(vector.split(self.sizes, -1))

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return a vector (..., n) as tensors (..., *shape)."""
        pieces, lead = self.split(vector), vector.shape[:-1]
        if self.orders is None:
            pairs = zip(pieces, self.shapes, strict=True)
            return [piece.reshape((*lead, *shape)) for piece, shape in pairs]
        tensors = []
        for piece, shape, order in zip(pieces, self.shapes, self.orders, strict=True):
            laid_out = piece.reshape((*lead, *(shape[d] for d in order)))
            back = [len(lead) + order.index(d) for d in range(len(shape))]
            tensors.append(laid_out.permute((*range(len(lead)), *back)))
        return tensors

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Invert `views`."""
        pieces = []
        for index, (tensor, shape) in enumerate(zip(tensors, self.shapes, strict=True)):
            lead = tensor.dim() - len(shape)
            if self.orders is not None:
                order = [lead + d for d in self.orders[index]]
                tensor = tensor.permute((*range(lead), *order))
            pieces.append(tensor.reshape(*tensor.shape[:lead], -1))
        return torch.cat(pieces, -1)


class FlatParameters:
    """Two vectors that hold the trainable parameters of `groups` and their gradients.

    Binding moves every trainable parameter into `x` and every gradient into `g`;
    frozen ones stay where they are. Draws over the vectors follow memory order.

    Args:
        groups: The parameters, group by group, in the optimizer's order.

    Attributes:
        x: Shape (n,), the parameters.
        g: Shape (n,), the gradients; zero where a gradient is None.
        spans: Start and stop of every group within the vectors.
        sizes: Number of entries of every trainable parameter, in order.
        host: Whether reading a number out of the vectors waits for nothing.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]):
        self._all = [p for group in groups for p in group]
        self._params = [p for p in self._all if p.requires_grad]
        _require_one_kind(self._params)
        self.sizes = [p.numel() for p in self._params]
        self._offsets = [0, *accumulate(self.sizes)]
        like = self._params[0] if self._params else self._all[0]
        self.x = torch.empty(self._offsets[-1], dtype=like.dtype, device=like.device)
        self.g = torch.zeros_like(self.x)
        self.host = on_host(self.x)
        ends = [
            0,
            *accumulate(sum(p.numel() for p in g if p.requires_grad) for g in groups),
        ]
        self.spans = list(zip(ends[:-1], ends[1:], strict=True))
        self._strides = [_dense_strides(p) for p in self._params]
        self._grads = self.views(self.g)
        for p, view, grad in zip(
            self._params, self.views(self.x), self._grads, strict=True
        ):
            view.copy_(p.data)
            if p.grad is not None:
                _require_dense(p.grad)
                grad.copy_(p.grad)
            p.data = view
            p.grad = grad
        self._where = [p.data_ptr() if p.requires_grad else None for p in self._all]
        self._in_order = all(
            stride == _contiguous_strides(p.shape)
            for p, stride in zip(self._params, self._strides, strict=True)
        )

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return a vector cut into tensors shaped and laid out as the parameters."""
        return [
            vector.as_strided(p.shape, stride, vector.storage_offset() + offset)
            for p, stride, offset in zip(
                self._params, self._strides, self._offsets, strict=False
            )
        ]

    @cached_property
    def layout(self) -> Layout:
        """Where every trainable parameter lies in the vectors."""
        return Layout.of(self._params)

    @property
    def trainable(self) -> list[Tensor]:
        """The parameters that the vectors hold, in order."""
        return self._params

    def stacked(self, points: Tensor) -> list[Tensor]:
        """Return rows of vectors (P, n) cut as `views` does, with P in front."""
        rows, n = points.shape
        start = points.storage_offset()
        return [
            points.as_strided((rows, *p.shape), (n, *stride), start + offset)
            for p, stride, offset in zip(
                self._params, self._strides, self._offsets, strict=False
            )
        ]

    def holds(self, groups: Sequence[Sequence[Tensor]]) -> bool:
        """Return whether every parameter of `groups` still is the view it was."""
        where = iter(self._where)
        for group in groups:
            for p in group:
                expected = next(where, -1)
                if expected is None:
                    if p.requires_grad:
                        return False
                elif p.data_ptr() != expected or not p.requires_grad:
                    return False
        return next(where, -1) == -1

    def gather_gradients(self) -> None:
        """Copy gradients that are not our views (None, a bucket's, a new tensor)."""
        for p, grad in zip(self._params, self._grads, strict=True):
            if p.grad is not grad:
                if p.grad is None:
                    grad.zero_()
                else:
                    _require_dense(p.grad)
                    grad.copy_(p.grad)
                p.grad = grad

    def zero_gradients(self) -> None:
        """Set all gradients to zero, in place."""
        self.g.zero_()
        for p, grad in zip(self._params, self._grads, strict=True):
            p.grad = grad
        for p in self._all:
            if not p.requires_grad:
                p.grad = None

    def adopt(self, vector: Tensor, former: "FlatParameters") -> Tensor:
        """Return a vector laid out by `former` in this layout; new entries are 0.

        Of a matrix (n, k), as by `to_contiguous`, every column is a vector.
        """
        if vector.dim() == 2:
            return _by_column(lambda v: self.adopt(v, former), vector)
        adopted = torch.zeros(self.x.numel(), dtype=vector.dtype, device=vector.device)
        here = dict(zip(map(id, self._params), self.views(adopted), strict=True))
        old = zip(former._params, former.views(vector), strict=True)
        for p, values in old:
            if id(p) in here:
                here[id(p)].copy_(values)
        return adopted

    def to_contiguous(self, vector: Tensor) -> Tensor:
        """Return a vector in the order of contiguous parameters, for a checkpoint."""
        if self._in_order:
            return vector
        if vector.dim() == 2:
            return _by_column(self.to_contiguous, vector)
        return torch.cat([view.reshape(-1) for view in self.views(vector)])

    def from_contiguous(self, vector: Tensor) -> Tensor:
        """Invert `to_contiguous`."""
        if len(vector) != self.x.numel():
            raise ValueError(
                f"the optimizer's state has {len(vector)} entries, "
                f"the trainable parameters have {self.x.numel()}"
            )
        if self._in_order:
            return vector
        if vector.dim() == 2:
            return _by_column(self.from_contiguous, vector)
        laid_out = torch.empty_like(vector)
        pieces = vector.split(self.sizes)
        for view, piece in zip(self.views(laid_out), pieces, strict=True):
            view.copy_(piece.view(view.shape))
        return laid_out


def _by_column(arranged: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """Return a matrix (n, k) whose columns are arranged one by one."""
    columns = [arranged(column) for column in matrix.T.contiguous()]
    return torch.stack(columns, 1) if columns else matrix


def _require_one_kind(params: Sequence[Tensor]) -> None:
    """Refuse what one flat vector cannot hold."""
    for p in params:
        if p.is_complex():
            raise ValueError(
                "complex parameters are not supported: pass torch.view_as_real views"
            )
        if p.layout != torch.strided:
            raise ValueError(f"sparse parameters are not supported, got {p.layout}")
        if p.dtype != params[0].dtype or p.device != params[0].device:
            raise ValueError(
                "all parameters of one optimizer must share dtype and device, got "
                f"{params[0].dtype} on {params[0].device} and {p.dtype} on {p.device}"
            )


def _require_dense(grad: Tensor) -> None:
    if grad.layout != torch.strided:
        raise ValueError(
            "sparse gradients are not supported: use sparse=False in the embedding"
        )


def _contiguous_strides(shape: torch.Size) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides)) if shape else ()


def _dense_strides(p: Tensor) -> tuple[int, ...]:
    """Return the strides to keep: the tensor's own if it fills its memory."""
    if p.is_contiguous():  # also gives sizes of 1 one canonical stride
        return _contiguous_strides(p.shape)
    order = sorted(range(p.dim()), key=lambda d: p.stride(d))
    expected = 1
    for d in order:
        if p.size(d) > 1:
            if p.stride(d) != expected:
                return _contiguous_strides(p.shape)
            expected *= p.size(d)
    return p.stride()
