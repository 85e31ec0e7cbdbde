"""What a backend is to do for one arm of a search."""

from dataclasses import dataclass, field

from tune.schedulers import Scheduler
from tune.searchers import Searcher
from tune.spaces import Space
from tune.trial import Check, Mode, Objective


@dataclass(frozen=True)
class Resources:
    """What one trial occupies, of a Ray cluster.

    Attributes:
        cpus: CPU cores, also the threads of torch; may be a fraction.
        gpus: GPUs; 0.25 lets four trials share one.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if value < 0:
                raise ValueError(f"resources.{name} must be at least 0, got {value}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(
                f"resources.gpus must be a whole number above 1, got {self.gpus}"
            )


@dataclass(frozen=True)
class Job:
    """Trials of one objective.

    Attributes:
        arm: Its name.
        objective: What a trial runs.
        space: Where its hyper-parameters lie.
        metric: What to look at.
        mode: "min" or "max".
        samples: Trials.
        searcher: Which points to try.
        scheduler: Which trials end early; None: none.
        hours: After which no trial goes on; None: no limit.
        retries: How often a trial that failed is begun again, from its checkpoint.
        stop_on_failure: Whether a trial that failed for good ends the search.
        concurrent: The most trials at a time; None: as many as there is room for.
        resources: Of a trial, on Ray.
        constraint: Which points are not run; None: all are.
    """

    arm: str
    objective: Objective
    space: Space
    metric: str
    mode: Mode
    samples: int
    searcher: Searcher
    scheduler: Scheduler | None = None
    hours: float | None = None
    retries: int = 2
    stop_on_failure: bool = False
    concurrent: int | None = None
    resources: Resources = field(default_factory=Resources)
    constraint: Check | None = None
