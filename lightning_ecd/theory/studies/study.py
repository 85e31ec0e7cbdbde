"""What a study of the theory is, and what it finds."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_ecd.theory.problems import Problem

#: Told what is being done, and the share that is.
Progress = Callable[[str, float], None]


@dataclass
class Findings:
    """What a study found.

    Attributes:
        numbers: By name.
        arrays: By name.
        figures: Name -> draws the figure.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Callable[[], Any]] = field(default_factory=dict)


class TheoryStudy(ABC):
    """Something to find out about a problem."""

    #: Whether it is about a problem, or brings its own.
    needs_problem: bool = True

    @abstractmethod
    def run(self, problem: Problem, progress: Progress) -> Findings:
        """Return what was found."""
