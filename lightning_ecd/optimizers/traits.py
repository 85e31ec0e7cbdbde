"""What an optimizer needs and what it stands, declared once.

From these records come the `optimizers` listing, the test matrix, the table in the
README and every refusal at start-up. No code asks for an optimizer by its name.
"""

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_ecd.ranges import Range, annotated_ranges


@dataclass(frozen=True)
class Traits:
    """Needs and limits of one optimizer.

    Attributes:
        family: Such as "energy-conserving".
        summary: One line.
        paper: Authors, venue, arXiv number.
        needs_loss: The update reads the loss, not only its gradient.
        needs_gradient: The update reads the gradient.
        closure: `step` must be given a closure.
        evaluations: Closure calls per step, a number or arithmetic on
            hyper-parameters such as "1 + inner_steps".
        minibatches: Fresh mini-batches per step, likewise.
        state: Floats of state per parameter, likewise.
        draws_noise: The update draws random numbers.
        accumulation: Right under gradient accumulation.
        scaler: Right under 16-bit gradient scaling.
        bf16: Parameters may be bfloat16.
        compile: Right when the network is compiled.
        ddp: Right under data-parallel training.
        rows: Many runs can be the rows of one parameter: what it computes of a row
            depends on that row alone.
        clipping: "fine", or the sentence to warn with.
    """

    family: str
    summary: str
    paper: str
    needs_loss: bool = False
    needs_gradient: bool = True
    closure: bool = False
    evaluations: str = "1"
    minibatches: str = "1"
    state: str = "1"
    draws_noise: bool = False
    accumulation: bool = True
    scaler: bool = True
    bf16: bool = True
    compile: bool = True
    ddp: bool = True
    rows: bool = False
    clipping: str = "fine"

    def count(self, what: str, hyperparameters: Mapping[str, Any]) -> int:
        """Return `evaluations`, `minibatches` or `state` as a number.

        Args:
            what: The attribute's name.
            hyperparameters: Values of the names in its arithmetic; `step`, counted
                from 0, is 0 unless it is given.

        Example:
            >>> sgd = Traits("plain", "", "", state="momentum != 0")
            >>> sgd.count("state", {"momentum": 0.9})
            1
        """
        return int(arithmetic(getattr(self, what), {"step": 0, **hyperparameters}))


#: What is assumed of an optimizer that is not registered.
UNKNOWN = Traits("other", "an optimizer given by its import path", "", state="0")


@dataclass(frozen=True)
class Entry:
    """One line of the registry.

    Attributes:
        cls: The class.
        traits: Its record.
        extra_ranges: Search ranges of a class whose constructor has no annotations.
    """

    cls: type[torch.optim.Optimizer]
    traits: Traits
    extra_ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, Range]:
        """Search range of every hyper-parameter that has one."""
        own = annotated_ranges(self.cls) if not self.extra_ranges else {}
        return {**own, **self.extra_ranges}

    def minibatches(self, arguments: Mapping[str, Any]) -> int:
        """Return how many fresh mini-batches a step takes, given the arguments.

        Presets may settle what the arguments leave open, so one is built to be asked.
        """
        if self.traits.minibatches.isdigit():
            return int(self.traits.minibatches)
        optimizer = self.cls([torch.nn.Parameter(torch.zeros(1))], **arguments)
        return self.traits.count("minibatches", optimizer.param_groups[0])


_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
}


def arithmetic(text: str, names: Mapping[str, Any]) -> Any:
    """Return the value of arithmetic on named numbers; nothing else is understood.

    Args:
        text: Numbers, names, quoted words, ``+ - * // %``, comparisons, ``and``,
            ``or``, ``not``.
        names: The names' values.

    Returns:
        A number.

    Raises:
        ValueError: For any other syntax or an unknown name.

    Example:
        >>> arithmetic("1 + inner_steps * (replicas > 1)", {"inner_steps": 5,
        ...     "replicas": 2})
        6
    """

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() as number):
                return number
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](value(node.left), value(node.right))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if (
                type(op) in _OPERATORS
            ):
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.BoolOp(op=ast.And()):
                return all(value(part) for part in node.values)
            case ast.BoolOp(op=ast.Or()):
                return any(value(part) for part in node.values)
            case ast.UnaryOp(op=ast.Not()):
                return not value(node.operand)
        raise ValueError(f"cannot read {ast.unparse(node)!r} in {text!r}")

    return value(ast.parse(text, mode="eval").body)
