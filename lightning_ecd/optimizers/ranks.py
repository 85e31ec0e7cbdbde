"""The processes of a data-parallel run, as an optimizer sees them."""

from torch import Tensor, distributed


def ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return the number of this process."""
    return distributed.get_rank() if _grouped() else 0


def averaged(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; it may be written."""
    if ranks() > 1:
        distributed.all_reduce(values)
        values /= ranks()
    return values


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
