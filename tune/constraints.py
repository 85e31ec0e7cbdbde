"""Constraints: which points of a search are not worth a run.

A point that a constraint forbids is a trial that was not run: it counts as one of the
samples, is in the tables as "infeasible" with the reason, and the searcher is told the
worst value there is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_ecd.errors import UserError
from tune.spaces import Space
from tune.trial import Check

if TYPE_CHECKING:  # workers need not import what objectives do
    from tune.objectives import Fit, Trajectories


class Constraint(ABC):
    """Says which points are not to be run.

    Example:
        In a module of yours; a search file names it, ``constraint: mine.Product``::

            class Product(Constraint):
                keys = ("lr", "data.batch_size")

                def forbids(self, values):
                    ratio = values["lr"] / values["data.batch_size"]
                    return f"lr / b is {ratio:.2g}" if ratio > 0.1 else None
    """

    #: Settings that it looks at, named as in a space: short names are the optimizer's.
    keys: tuple[str, ...] = ()

    def begin(  # noqa: B027
        self, objective: "Fit | Trajectories", space: Space
    ) -> None:
        """Get ready, once before the trials of an optimizer: what all points share.

        What is kept on the object is pickled for the workers of a cluster.

        Args:
            objective: What trials run.
            space: Where its hyper-parameters lie.

        Raises:
            UserError: If the constraint does not speak of such trials.
        """

    @abstractmethod
    def forbids(self, values: Mapping[str, Any]) -> str | None:
        """Return why a point is not to be run; None: it is run.

        Args:
            values: The hyper-parameters by name, and the settings of `keys`: those that
                are not searched have the experiment's value.
        """


@dataclass(frozen=True)
class _Bound:
    """A constraint and the settings that it looks at.

    Attributes:
        constraint: Whom to ask.
        fixed: Settings that are not searched.
        names: Key of the constraint -> name of the hyper-parameter.
    """

    constraint: Constraint
    fixed: dict[str, Any]
    names: dict[str, str]

    def __call__(self, values: Mapping[str, Any]) -> str | None:
        searched = {key: values[name] for key, name in self.names.items()}
        return self.constraint.forbids({**values, **self.fixed, **searched})


def bind(
    constraint: Constraint, objective: "Fit | Trajectories", space: Space
) -> Check:
    """Return what asks a constraint about the hyper-parameters of a trial.

    Args:
        constraint: It stays as it is: each optimizer of a search has a copy.
        objective: What trials run.
        space: Where its hyper-parameters lie.

    Raises:
        UserError: If the constraint looks at what is not there.
    """
    from tune.objectives import setting

    constraint, who = copy(constraint), type(constraint).__name__
    searched = {objective.key(name): name for name in space.names}
    fixed, names = {}, {}
    for key in constraint.keys:
        full = objective.key(key)
        if full in searched:
            names[key] = searched[full]
            continue
        try:
            fixed[key] = setting(objective.settings, full)
        except UserError as error:
            raise UserError(f"constraint: {who} looks at {key}: {error}") from error
    constraint.begin(objective, space)
    found = _Bound(constraint, fixed, names)
    try:
        found(space.values(space.at([0.5] * len(space.coordinates))))
    except KeyError as error:
        there = ", ".join({**dict.fromkeys(space.names), **fixed, **names})
        raise UserError(
            f"constraint: {who} looks at {error}, which is not searched; there are "
            f"{there}"
        ) from error
    return found
