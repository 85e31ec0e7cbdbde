"""The fixed samples that a loss is looked at on."""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_ecd.errors import UserError


def samples_of(model: nn.Module, batch: Any) -> int:
    """Return the number of samples in a batch, the model's count if it has one."""
    count = getattr(model, "batch_size", None)
    if callable(count):
        return count(batch)
    return length_of(batch)


def length_of(batch: Any) -> int:
    """Return the length of the first tensor that has one; 1 without any."""
    return next((len(leaf) for leaf in tree_leaves(batch) if _has_length(leaf)), 1)


def _has_length(leaf: Any) -> bool:
    return torch.is_tensor(leaf) and leaf.ndim > 0


def fixed_batches(
    source: Any,
    samples: int,
    chunk: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> list[Any]:
    """Return the first samples of a loader, in batches of a size that fits in memory.

    Batches whose tensors differ in length (points inside and on a boundary) are left
    as they are.

    Args:
        source: Iterable of batches.
        samples: The most samples.
        chunk: The most samples in a batch.
        device: Where to.
        dtype: Of floating-point tensors; default: as they are.
    """
    found: list[Any] = []
    for batch in source:
        if samples <= 0:
            break

        def moved(leaf: Any) -> Any:
            if not torch.is_tensor(leaf):
                return leaf
            return leaf.to(device, dtype if leaf.is_floating_point() else None)

        batch = tree_map(moved, batch)
        lengths = {len(leaf) for leaf in tree_leaves(batch) if _has_length(leaf)}
        if len(lengths) != 1:
            found.append(batch)
            samples -= max(lengths, default=1)
            continue
        size = min(samples, *lengths)
        for start in range(0, size, chunk):
            span = slice(start, min(start + chunk, size))
            found.append(
                tree_map(lambda t, s=span: t[s] if _has_length(t) else t, batch)
            )
        samples -= size
    return found


def batches_of(
    data: Any,
    part: str,
    samples: int,
    chunk: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> list[Any]:
    """Return fixed batches of a data module, without augmentation.

    Args:
        data: A data module, set up; a loader of its own is made, so that a running
            fit notices nothing.
        part: "train", "val" or "test".
        samples: The most samples, the first of the loader.
        chunk: The most samples in a batch.
        device: Where to.
        dtype: Of floating-point tensors; default: as they are.

    Raises:
        UserError: If the part holds no sample.
    """
    augment = getattr(data, "augment", None)
    if augment is not None:
        data.augment = None
    try:
        loader = getattr(data, f"{part}_dataloader")()
    finally:
        if augment is not None:
            data.augment = augment
    loaders = loader if isinstance(loader, list) else [loader]
    every = (batch for one in loaders for batch in one)
    found = fixed_batches(every, samples, chunk, device, dtype)
    if not found:
        raise UserError(f"the data has no {part} samples: choose another part")
    return found
