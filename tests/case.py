"""What one optimizer is tested with."""

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Arguments of one optimizer.

    Attributes:
        good: Label -> arguments; together they cover every variant and switch, and
            each makes progress on every problem of `PROBLEMS`.
        bad: Arguments to refuse, with the argument that the message must name.
    """

    good: dict[str, Settings]
    bad: list[tuple[Settings, str]] = field(default_factory=list)


def outside(name: str, *values: float) -> list[tuple[Settings, str]]:
    """Return arguments to refuse: values of one that it must not take, and nan."""
    return [({name: value}, name) for value in (*values, float("nan"))]
