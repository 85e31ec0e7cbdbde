r"""Neural tangent kernels of any network, from its gradients.

.. math:: K_{ij} = \langle \partial_\theta f(x_i), \partial_\theta f(x_j) \rangle

Legend: N, samples; P, parameters; f, network with outputs (N,), or (N, outputs) of
which one is chosen; X, inputs (N, ...).

- `layer_kernel`: layer by layer from activations and their gradients, for networks of
  linear and convolutional layers.
- `jacobian_kernel`: any network, in blocks of samples and parameters.
- `KernelProduct`: products with rows of vectors, without the kernel.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import pad

from lightning_ecd.errors import UserError

#: Bytes that the Jacobian of one block of samples and parameters may take.
_BLOCK = 2**30
#: Samples that pass through a network at once, and bytes of patches that are there at
#: once: small enough for what is read again to stay in the cache.
_SAMPLES, _CACHED = 250, 2**22
#: Rows of a symmetric product that are computed at once.
_ROWS = 250


class _Layer(NamedTuple):
    """What a layer's share of a kernel is made of.

    Attributes:
        inputs: (N, fan_in), or (N, fan_in, L), or the images of a convolution.
        slopes: Derivatives of the chosen output by the layer's, (N, out), or
            (N, out, L) of a layer at L places.
        fan_in: Inputs of one output.
        patches: Some inputs -> (n, fan_in, L) of a layer at L places.
        scale: Of the weight in the forward pass.
        weight: Whether it trains.
        bias: Whether it trains.
    """

    inputs: Tensor
    slopes: Tensor
    fan_in: int
    patches: Callable[[Tensor], Tensor]
    scale: float
    weight: bool
    bias: bool


def layer_kernel(
    network: nn.Module, X: Tensor, X2: Tensor | None = None, output: int = 0
) -> Tensor:
    r"""Return the kernel of a network of linear and convolutional layers.

    One forward and one backward pass give the inputs A and the slopes G of every
    layer, and a linear one adds

    .. math:: (A A^T + 1) \circ (G G^T),

    the 1 for its bias; a convolution the products of patches, or of the gradients of
    single samples, whichever costs less. Layers whose weight is multiplied by a
    number in the forward pass say so by an attribute `weight_scale`.

    Args:
        network: In evaluation mode samples must not see each other. Every trainable
            parameter belongs to an nn.Linear or nn.Conv2d that is used once.
        X: Inputs (N, ...).
        X2: Of the columns, (M, ...); None: X.
        output: Which of the network's outputs.

    Returns:
        Shape (N, N), or (N, M), float64.

    Raises:
        UserError: If the network has other parameters: see `jacobian_kernel`.
    """
    rows = _layers(network, X, output)
    columns = rows if X2 is None else _layers(network, X2, output)
    K = torch.zeros(
        len(X), len(X if X2 is None else X2), dtype=torch.float64, device=X.device
    )
    for a, b in zip(rows, columns, strict=True):
        _add_share(K, a, b)
    return K


def _layers(network: nn.Module, X: Tensor, output: int) -> list[_Layer]:
    """Return inputs and slopes of every layer that trains, for all samples."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    parts: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    own: set[int] = set()
    handles = []

    def keep(layer: nn.Module, inputs: Any, outputs: Tensor) -> None:
        if layer in found:
            raise UserError(
                f"the network uses a {type(layer).__name__} twice: take "
                "jacobian_kernel instead of layer_kernel"
            )
        found[layer] = inputs[0].detach(), outputs

    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(
            p.requires_grad for p in layer.parameters(recurse=False)
        ):
            own |= {id(p) for p in layer.parameters(recurse=False)}
            handles.append(layer.register_forward_hook(keep))
    training = network.training
    network.eval()
    try:
        others = [
            name
            for name, p in network.named_parameters()
            if p.requires_grad and id(p) not in own
        ]
        if others:
            raise UserError(
                f"{others[0]} belongs to no linear or convolutional layer: take "
                "jacobian_kernel instead of layer_kernel"
            )
        for x in X.split(_SAMPLES):
            found.clear()
            with torch.enable_grad():
                total = _chosen(network(x), output).sum()
                slopes = torch.autograd.grad(total, [z for _, z in found.values()])
            for (layer, (inputs, _)), G in zip(found.items(), slopes, strict=True):
                parts.setdefault(layer, []).append((inputs, G))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    whole = {layer: map(torch.cat, zip(*p, strict=True)) for layer, p in parts.items()}
    return [_parts(layer, *tensors) for layer, tensors in whole.items()]


def _parts(layer: nn.Module, inputs: Tensor, G: Tensor) -> _Layer:
    weight: Any = layer.weight
    bias = layer.bias
    patches = _same
    if isinstance(layer, nn.Conv2d):
        if (
            layer.groups != 1
            or isinstance(layer.padding, str)
            or (layer.padding_mode != "zeros")
        ):
            raise UserError(
                "convolutions in groups or with padding by name are not taken apart: "
                "take jacobian_kernel instead of layer_kernel"
            )
        patches, G = partial(_patches, layer, G.shape[2:]), G.flatten(2)
    elif inputs.dim() > 2:  # one linear layer at many places
        inputs, G = inputs.flatten(1, -2).mT, G.flatten(1, -2).mT
    scale = float(getattr(layer, "weight_scale", 1.0))
    trains = bool(weight.requires_grad), bias is not None and bool(bias.requires_grad)
    return _Layer(inputs, G, weight[0].numel(), patches, scale, *trains)


def _same(inputs: Tensor) -> Tensor:
    return inputs


def _patches(layer: nn.Conv2d, places: torch.Size, images: Tensor) -> Tensor:
    """Return what a convolution's outputs at all places read, (n, fan_in, L)."""
    down, right = (int(side) for side in layer.padding)
    images = pad(images, (right, right, down, down)).contiguous()
    sample, channel, row, column = images.stride()
    strides = (
        *(step * d for step, d in zip((row, column), layer.dilation, strict=True)),
        *(step * s for step, s in zip((row, column), layer.stride, strict=True)),
    )
    size = (*images.shape[:2], *layer.kernel_size, *places)
    found = images.as_strided(size, (sample, channel, *strides))
    return found.reshape(len(images), -1, places.numel())


def _add_share(K: Tensor, a: _Layer, b: _Layer) -> None:
    """Add what a layer gives to the kernel, (N, M)."""
    if a.slopes.dim() == 2:
        inputs = _with_bias(a)
        inner = _gram(inputs, inputs if b is a else _with_bias(b))
        K.addcmul_(inner, _gram(a.slopes, b.slopes))
        return
    if a.bias:
        sums = a.slopes.sum(2)
        K += _gram(sums, sums if b is a else b.slopes.sum(2))
    if not a.weight:
        return
    fan_in, (N, out, L), M = a.fan_in, a.slopes.shape, len(b.slopes)
    pairs = N * M * L * L * (fan_in + out)
    gradients = (N + M) * L * fan_in * out + N * M * fan_in * out
    if gradients <= pairs:
        for rows in _spans(out, fan_in * (N + M) * 8):
            left = _gradients(a, rows)
            right = left if b is a else _gradients(b, rows)
            K.add_(_gram(left, right), alpha=a.scale**2)
        return
    others = b.patches(b.inputs)
    for i in range(N):
        A = torch.einsum("fl,mfk->mlk", a.patches(a.inputs[i : i + 1])[0], others)
        G = torch.einsum("ol,mok->mlk", a.slopes[i], b.slopes)
        K[i] += a.scale**2 * (A * G).sum((1, 2), dtype=torch.float64)


def _with_bias(layer: _Layer) -> Tensor:
    """Return what multiplies a linear layer's trainable numbers, (N, fan_in + 1)."""
    weight = layer.inputs * (layer.scale * layer.weight)
    return pad(weight, (0, 1), value=float(layer.bias))


def _gradients(layer: _Layer, rows: slice) -> Tensor:
    """Return every sample's gradient by some rows of the weight, (N, size), float64."""
    slopes = layer.slopes[:, rows]
    N, out, L = slopes.shape
    found = slopes.new_empty(N, out, layer.fan_in, dtype=torch.float64)
    side = max(1, _CACHED // (layer.fan_in * L * slopes.element_size()))
    for i in range(0, N, side):
        j = i + side
        found[i:j] = torch.bmm(slopes[i:j], layer.patches(layer.inputs[i:j]).mT)
    return found.flatten(1)


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Return all inner products of rows (N, f) and (M, f), (N, M), float64."""
    if a is not b:
        return a.double() @ b.double().T
    a = a.double()
    K = a.new_empty(len(a), len(a))
    for i in range(0, len(a), _ROWS):  # the lower half, and its mirror image
        j = i + _ROWS
        K[i:j, :j] = a[i:j] @ a[:j].T
        K[:i, i:j] = K[i:j, :i].T
    return K


def _spans(size: int, bytes_of_one: int) -> Iterator[slice]:
    """Yield spans of `size` rows that fit the block."""
    step = max(1, int(_BLOCK / bytes_of_one))
    for first in range(0, size, step):
        yield slice(first, first + step)


def _chosen(outputs: Tensor, output: int) -> Tensor:
    """Return one output of every sample, (N,)."""
    return outputs if outputs.dim() == 1 else outputs[:, output]


def jacobian_kernel(
    network: nn.Module,
    X: Tensor,
    X2: Tensor | None = None,
    output: int = 0,
    memory: float = _BLOCK,
) -> Tensor:
    """Return the kernel of any network, from Jacobians of blocks.

    A block is some samples and one parameter tensor: the whole Jacobian, of N P
    numbers, is never there.

    Args:
        network: In evaluation mode samples must not see each other.
        X: Inputs (N, ...).
        X2: Of the columns, (M, ...); None: X.
        output: Which of the network's outputs.
        memory: Bytes that a block may take.

    Returns:
        Shape (N, N), or (N, M), float64.
    """
    same = X2 is None
    Y = X if X2 is None else X2
    K = torch.zeros(len(X), len(Y), dtype=torch.float64, device=X.device)
    training = network.training
    network.eval()
    try:
        for name, p in network.named_parameters():
            if not p.requires_grad:
                continue
            size = max(1, int(memory / (8 * p.numel())))
            block = partial(_jacobian, network, name, output)
            for i in range(0, len(X), size):
                left = block(X[i : i + size])
                for j in range(i if same else 0, len(Y), size):
                    again = same and i == j
                    right = left if again else block(Y[j : j + size])
                    part = left @ right.T
                    K[i : i + size, j : j + size] += part
                    if same and not again:
                        K[j : j + size, i : i + size] += part.T
    finally:
        network.train(training)
    return K


def _jacobian(network: nn.Module, name: str, output: int, X: Tensor) -> Tensor:
    """Return the derivatives by one parameter of every sample, (N, size), float64."""
    p = network.get_parameter(name).detach()

    def one(p: Tensor, x: Tensor) -> Tensor:
        outputs = functional_call(network, {name: p}, (x.unsqueeze(0),))
        return _chosen(outputs, output).squeeze(0)

    with torch.no_grad():  # no graph through the other parameters
        return vmap(torch.func.grad(one), (None, 0))(p, X).flatten(1).double()


class KernelProduct:
    """Products K v = J(Jᵀv) without K: two passes over the samples.

    Args:
        network: In evaluation mode samples must not see each other.
        X: Inputs (N, ...).
        output: Which of the network's outputs.
        chunk: Samples at once.
    """

    def __init__(
        self, network: nn.Module, X: Tensor, output: int = 0, chunk: int = 1000
    ):
        self.network, self.X, self.output, self.chunk = network, X, output, chunk
        self.weights = {
            name: p.detach()
            for name, p in network.named_parameters()
            if p.requires_grad
        }

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows (k, N) times K, (k, N), of their type."""
        like = next(iter(self.weights.values()))
        size = sum(w.numel() for w in self.weights.values()) * like.element_size()
        side = max(1, _BLOCK // (4 * size))
        training = self.network.training
        self.network.eval()
        try:
            found = [self._images(part.to(like)) for part in rows.split(side)]
        finally:
            self.network.train(training)
        return torch.cat(found).to(rows)

    def _images(self, rows: Tensor) -> Tensor:
        chunks = self.X.split(self.chunk)
        parts = []
        for X, part in zip(chunks, rows.split(self.chunk, 1), strict=True):
            outputs, weights = self._outputs(X)
            parts.append(
                torch.autograd.grad(outputs, weights, part, is_grads_batched=True)
            )
        total = [sum(pieces[1:], pieces[0]) for pieces in zip(*parts, strict=True)]
        images = []
        for X in chunks:
            # J^T u is linear in u: its own derivative along the total is J total
            outputs, weights = self._outputs(X)
            u = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(outputs, weights, u, create_graph=True)
            found = torch.autograd.grad(pulled, u, total, is_grads_batched=True)
            images.append(found[0])
        return torch.cat(images, 1)

    def _outputs(self, X: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs of some samples, and the weights they depend on."""
        with torch.enable_grad():
            weights = {k: w.requires_grad_() for k, w in self.weights.items()}
            outputs = functional_call(self.network, weights, (X,))
            return _chosen(outputs, self.output), list(weights.values())
