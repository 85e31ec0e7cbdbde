"""Random numbers as functions of (seed, counters).

No generator runs on from step to step: what is drawn at step 17 depends on the
seed and on 17 alone. Resuming is therefore exact, all ranks agree, and draws can be
made again at will. The bits differ between device types.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mixed(seed: int, *counters: int) -> int:
    """Hash a seed and counters to 63 bits (SplitMix64 steps).

    Args:
        seed: Any integer.
        counters: Any integers: a stream, a step, ...

    Returns:
        An integer in [0, 2**63), different counters giving unrelated ones.
    """
    state = seed & _MASK
    for counter in (0, *counters):
        state = (state + counter * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(
    seed: int, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for one (seed, counters)."""
    return torch.Generator(device=device).manual_seed(mixed(seed, *counters))


def subsets(count: int, size: int, samples: int, seed: int, *counters: int) -> Tensor:
    """Return sets of distinct numbers below `samples`, in random order.

    R. Floyd's algorithm, all sets side by side: the j-th draw goes up to
    ``samples - size + j``, and where it is taken already that bound takes its place.

    Args:
        count: Of the sets.
        size: Of a set, at most `samples`.
        samples: To choose from.
        seed: See `mixed`.
        counters: See `mixed`.

    Returns:
        Shape (count, size), on the CPU.
    """
    draws = generator(seed, *counters)
    chosen = torch.empty(count, size, dtype=torch.long)
    for j in range(size):
        last = samples - size + j
        drawn = torch.randint(last + 1, (count,), generator=draws)
        taken = (chosen[:, :j] == drawn[:, None]).any(1)
        chosen[:, j] = torch.where(taken, last, drawn)
    # so far large numbers tend to come late
    return chosen.gather(1, torch.rand(count, size, generator=draws).argsort(1))


def normals(like: Tensor, seed: int, *counters: int) -> Tensor:
    """Return standard normal numbers, shaped and typed as `like`."""
    draws = generator(seed, *counters, device=like.device)
    return torch.empty_like(like).normal_(generator=draws)


def uniforms(like: Tensor, seed: int, *counters: int) -> Tensor:
    """Return numbers uniform in [0, 1), shaped and typed as `like`."""
    draws = generator(seed, *counters, device=like.device)
    return torch.empty_like(like).uniform_(generator=draws)
