"""The processes of a data-parallel run, as an optimizer sees them."""

from torch import distributed


def ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return the number of this process."""
    return distributed.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
