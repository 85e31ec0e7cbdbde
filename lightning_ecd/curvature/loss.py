"""A loss over a fixed set of samples, with its curvature, on flat vectors.

Legend: x, parameters (n,); f(x), mean loss of all samples; V, k vectors (k, n).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_leaves

from lightning_ecd.curvature.batches import samples_of
from lightning_ecd.curvature.evaluation import evaluation, stateless
from lightning_ecd.errors import UserError

Matrix = Literal["hessian", "ggn", "fisher"]
#: Numbers that the gradients of one chunk of single samples may take.
_AT_ONCE = 2**24


class Loss:
    r"""The mean loss f of a model over fixed batches, and products with its curvature.

    Every product goes through the batches one after the other and multiplies all the
    vectors it is given on the graph of one batch: memory is that of one batch, and
    the graph is built once for k vectors. The model is in evaluation mode meanwhile,
    so BatchNorm uses its running statistics and nothing is dropped; a recurrent
    state starts from zero with every batch.

    Args:
        model: Whose trainable parameters are x, in the order of `parameters()`.
        batches: The fixed samples; weighted by their number.
        loss: Mean loss of a batch; default: the model's own `loss`, as tasks have it.
        network: The part of the model whose outputs split the loss for `ggnvp`;
            default: the model's `network`, else the model.
        together: Vectors multiplied at once by vmap; 1: one after the other, which
            takes the least memory. Default: 1 for convolutions on the CPU, where
            vmap is slower, else 32.
        progress: Called after every batch of every pass.

    Example:
        >>> bowl = nn.Linear(2, 1, bias=False)
        >>> f = Loss(bowl, [torch.eye(2)], lambda x: bowl(x).square().sum())
        >>> f.hvp(torch.tensor([1.0, 3.0])).tolist()
        [2.0, 6.0]
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        loss: Callable[[Any], Tensor] | None = None,
        network: nn.Module | None = None,
        together: int | None = None,
        progress: Callable[[], object] | None = None,
    ):
        if not len(batches):
            raise ValueError("batches must hold at least one batch")
        if together is not None and together < 1:
            raise ValueError(f"together must be at least 1, got {together}")
        self.model, self.batches, self.progress = model, batches, progress
        self.loss = stateless(model, loss or model.loss)  # type: ignore[arg-type]
        self.network: nn.Module = network or getattr(model, "network", model)  # type: ignore[assignment]
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("model must have trainable parameters")
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.n = sum(p.numel() for p in self.parameters)
        sizes = [samples_of(model, batch) for batch in batches]
        self.samples = sum(sizes)
        self.shares = [size / self.samples for size in sizes]
        if together is None:
            convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
            together = 1 if convolves and self.x.device.type == "cpu" else 32
        self.together = together

    # -- the point -----------------------------------------------------------------

    @property
    def x(self) -> Tensor:
        """A copy of the parameters, (n,)."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def move(self, x: Tensor) -> None:
        """Set the parameters to x, (n,)."""
        with torch.no_grad():
            parts = x.split([p.numel() for p in self.parameters])
            for p, part in zip(self.parameters, parts, strict=True):
                p.copy_(part.view_as(p))

    @contextmanager
    def restored(self) -> Iterator[Tensor]:
        """Give the present parameters, (n,), and set them again at the end."""
        x = self.x
        try:
            yield x
        finally:
            self.move(x)

    # -- value and gradient --------------------------------------------------------

    def value(self) -> float:
        """Return f(x)."""
        with torch.no_grad(), evaluation(self.model):
            return sum(share * self.loss(b).item() for b, share in self._pass())

    def values(self, points: Tensor) -> Tensor:
        """Return f at the rows of `points`, (P, n) -> (P,), float64."""
        with self.restored():
            found = []
            for point in points:
                self.move(point)
                found.append(self.value())
        return torch.tensor(found, dtype=torch.float64)

    def gradient(self) -> Tensor:
        """Return ∇f(x), (n,)."""
        total = torch.zeros_like(self.x)
        with evaluation(self.model):
            for batch, share in self._pass():
                total.add_(self._gradient(batch), alpha=share)
        return total

    def batch_gradient(self, number: int) -> Tensor:
        """Return the gradient, (n,), of one batch; they are counted around."""
        with evaluation(self.model):
            found = self._gradient(self.batches[number % len(self.batches)])
        self._told()
        return found

    # -- products ------------------------------------------------------------------

    def hvp(self, V: Tensor) -> Tensor:
        r"""Return :math:`V H`, H the Hessian: :math:`H v = \nabla (v^T \nabla f)`.

        Args:
            V: Shape (n,) or (k, n).

        Returns:
            Products, shaped as `V`.

        Reference:
            B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural
            Computation 1994.
        """

        def product(batch: Any, rows: Tensor) -> Tensor:
            return self._pulled(self._gradient(batch, graph=True), rows)

        return self._summed(product, V)

    def ggnvp(self, V: Tensor) -> Tensor:
        r"""Return :math:`V G`, G the generalized Gauss-Newton matrix.

        :math:`G = J^T H_z J` with J the Jacobian of the network's outputs z and
        :math:`H_z` the Hessian of the loss in z. For cross-entropy and squares it is
        the Fisher matrix of the model's own distribution.

        Args:
            V: Shape (n,) or (k, n).

        Returns:
            Products, shaped as `V`.

        Raises:
            UserError: If the loss is not one of the network's outputs alone.

        Reference:
            N. N. Schraudolph, "Fast curvature matrix-vector products for
            second-order gradient descent", Neural Computation 2002.
        """

        def product(batch: Any, rows: Tensor) -> Tensor:
            loss, outputs = self._outputs(batch)
            try:
                dz = torch.autograd.grad(loss, outputs, create_graph=True)
            except RuntimeError as error:
                raise UserError(_NO_OUTPUTS) from error
            z = _flat(outputs)
            # Jv is the derivative of u -> Jᵀu in direction v, transposed
            u = torch.zeros_like(z, requires_grad=True)
            pulled = torch.autograd.grad(
                z, self.parameters, u, create_graph=True, allow_unused=True
            )
            Jv = self._pulled(_flat(pulled, self.parameters), rows, [u])
            return self._pulled(z, self._pulled(_flat(dz), Jv, outputs))

        return self._summed(product, V)

    def fvp(self, V: Tensor) -> Tensor:
        r"""Return :math:`V F`, F the empirical Fisher matrix.

        :math:`F = \frac{1}{N} \sum_i g_i g_i^T` with :math:`g_i` the gradient of
        sample i: the uncentred second moment of the gradients.

        Args:
            V: Shape (n,) or (k, n).

        Returns:
            Products, shaped as `V`.
        """
        rows = V.reshape(-1, self.n)
        total = torch.zeros_like(rows)
        for g in self.sample_gradients():
            total.addmm_(rows @ g.T, g, alpha=1 / self.samples)
        return total.view_as(V)

    def product(self, matrix: Matrix) -> Callable[[Tensor], Tensor]:
        """Return the products with one of the matrices."""
        return {"hessian": self.hvp, "ggn": self.ggnvp, "fisher": self.fvp}[matrix]

    # -- entries -------------------------------------------------------------------

    def hessian(self, block: int = 64) -> Tensor:
        """Return the Hessian, (n, n), symmetrised; for up to about 50,000 parameters.

        Progress is told after every block of rows.

        Args:
            block: Rows computed at once.
        """
        H = torch.zeros(self.n, self.n, dtype=self.x.dtype, device=self.x.device)
        blocks = [slice(i, i + block) for i in range(0, self.n, block)]
        with evaluation(self.model):
            for batch, share in zip(self.batches, self.shares, strict=True):
                g = self._gradient(batch, graph=True)
                for part in blocks:
                    rows = H[part]
                    unit = torch.zeros_like(rows)
                    unit.diagonal(part.start).fill_(1)
                    rows.add_(self._pulled(g, unit), alpha=share)
                    self._told()
        for part in blocks:  # in place: a copy may not fit
            mean = (H[part, part.start :] + H[part.start :, part].T) / 2
            H[part, part.start :] = mean
            H[part.start :, part] = mean.T
        return H

    def fisher_diagonal(self, centered: bool = False) -> Tensor:
        """Return the diagonal of the empirical Fisher matrix, (n,): the mean of g².

        Args:
            centered: Subtract the square of the mean gradient.
        """
        square, mean = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for g in self.sample_gradients():
            square += g.square().sum(0) / self.samples
            mean += g.sum(0) / self.samples
        return square - mean.square() if centered else square

    def sample_gradients(self) -> Iterator[Tensor]:
        """Yield gradients of single samples in chunks, (b, n).

        Raises:
            UserError: If the loss cannot be taken of one sample.
        """
        named = zip(self.names, self.parameters, strict=True)
        at: dict[str, Tensor] = {f"model.{name}": p.detach() for name, p in named}
        call = _Call(self.model, self.loss)

        def loss(values: dict[str, Tensor], leaves: list[Tensor]) -> Tensor:
            alone = spec.unflatten([leaf.unsqueeze(0) for leaf in leaves])
            return functional_call(call, values, (alone,))

        width = max(1, _AT_ONCE // self.n)
        for batch, _ in self._pass():
            leaves, spec = tree_flatten(batch)
            for start in range(0, len(leaves[0]), width):
                chunk = [leaf[start : start + width] for leaf in leaves]
                try:
                    with evaluation(self.model):
                        found = vmap(grad(loss), in_dims=(None, 0))(at, chunk)
                except (RuntimeError, ValueError) as error:
                    reason = str(error).splitlines()[0]
                    raise UserError(
                        "the Fisher matrix needs the loss of every single sample, "
                        f"which this task does not give: {reason}"
                    ) from error
                yield torch.cat([found[name].flatten(1) for name in at], 1)

    # -- parts ---------------------------------------------------------------------

    def _pass(self) -> Iterator[tuple[Any, float]]:
        for batch, share in zip(self.batches, self.shares, strict=True):
            yield batch, share
            self._told()

    def _told(self) -> None:
        if self.progress is not None:
            self.progress()

    def _gradient(self, batch: Any, graph: bool = False) -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(
                self.loss(batch), self.parameters, create_graph=graph, allow_unused=True
            )
            return _flat(found, self.parameters)

    def _outputs(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch and what the network put out on the way."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs.extend(
                leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf)
            )

        handle = self.network.register_forward_hook(keep)
        try:
            loss = self.loss(batch)
        finally:
            handle.remove()
        if not outputs:
            raise UserError(_NO_OUTPUTS)
        return loss, outputs

    def _summed(self, product: Callable[[Any, Tensor], Tensor], V: Tensor) -> Tensor:
        rows = V.reshape(-1, self.n)
        total = torch.zeros_like(rows)
        with torch.enable_grad(), evaluation(self.model):
            for batch, share in self._pass():
                total.add_(product(batch, rows), alpha=share)
        return total.view_as(V)

    def _pulled(
        self, y: Tensor, V: Tensor, inputs: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return V times the Jacobian of y in `inputs` (default: in x).

        Args:
            y: Shape (m,).
            V: Shape (k, m).
            inputs: Tensors of n numbers in all.

        Returns:
            Shape (k, n).
        """
        inputs = self.parameters if inputs is None else inputs
        if not y.requires_grad:  # linear: the curvature is zero
            return V.new_zeros(len(V), sum(i.numel() for i in inputs))
        parts = []
        for rows in V.split(self.together):
            many = len(rows) > 1
            found = torch.autograd.grad(
                y,
                inputs,
                rows if many else rows[0],
                is_grads_batched=many,
                retain_graph=True,
                allow_unused=True,
            )
            flat = [
                rows.new_zeros(len(rows), i.numel())
                if part is None
                else part.detach().reshape(len(rows), -1)
                for part, i in zip(found, inputs, strict=True)
            ]
            parts.append(torch.cat(flat, 1))
        return torch.cat(parts)


_NO_OUTPUTS = (
    "the Gauss-Newton matrix needs a loss of the network's outputs, which this task's "
    "is not: choose the Hessian"
)


class _Call(nn.Module):
    """A loss as the forward of a module, for `functional_call`."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(batch)


def _flat(
    tensors: Sequence[Tensor | None], like: Sequence[Tensor] | None = None
) -> Tensor:
    """Return tensors as one vector; None, of those in `like`, counts as zeros."""
    parts = [
        torch.zeros_like(like[i]) if t is None and like is not None else t
        for i, t in enumerate(tensors)
    ]
    return torch.cat([part.reshape(-1) for part in parts if part is not None])
