"""Side-by-side timing: interleaved segments in one process, medians."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds per call of every function, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            for _ in range(inner):
                run()
            times[name].append((clock() - start) / inner)
    return {name: statistics.median(values) for name, values in times.items()}
