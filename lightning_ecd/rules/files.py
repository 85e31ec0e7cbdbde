"""Trained rules as files: the network's class and arguments, the rate, the weights."""

import pickle
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_ecd.errors import UserError
from lightning_ecd.rules.hnn import HNNRule
from lightning_ecd.rules.lstm import LSTMRule
from lightning_ecd.rules.port_hamiltonian import PortHamiltonianRule
from lightning_ecd.rules.rule import UpdateRule
from lightning_ecd.rules.small_fc import SmallFCRule

#: The rules that a file may name.
RULES: dict[str, type[UpdateRule]] = {
    rule.__name__: rule
    for rule in (HNNRule, LSTMRule, PortHamiltonianRule, SmallFCRule)
}
#: Where the meta-trained rules are that come with the project.
SHIPPED = Path(__file__).parent.parent / "weights"
#: Under what a checkpoint of meta-training holds the rule.
KEY = "trained_rule"


class TrainedRule(NamedTuple):
    """What a file brings.

    Attributes:
        rule: The network with its trained weights.
        lr: What its updates were multiplied with in training, the paper's out_mul.
    """

    rule: UpdateRule
    lr: float


def packed(rule: UpdateRule, lr: float) -> dict[str, Any]:
    """Return a rule as plain data, for a file or a checkpoint.

    Args:
        rule: The network.
        lr: Factor of its updates.
    """
    weights = {name: w.detach().cpu().clone() for name, w in rule.state_dict().items()}
    return {
        "rule": type(rule).__name__,
        "settings": dict(rule.settings),
        "lr": float(lr),
        "weights": weights,
    }


def write_rule(file: str | Path, rule: UpdateRule, lr: float) -> None:
    """Write a rule to a file.

    Args:
        file: Its path; the folder must exist.
        rule: The network.
        lr: Factor of its updates.
    """
    torch.save(packed(rule, lr), file)


def read_rule(file: str | Path, rule: UpdateRule | None = None) -> TrainedRule:
    """Read a rule that `write_rule` or a meta-training run has written.

    Args:
        file: A file of `write_rule`, a checkpoint of `modules.MetaTask`, or the name
            of a rule that comes with the project, such as "lstm_quadratics".
        rule: Its copy takes the weights; needed for classes outside this project,
            which a file's word is not enough to import.

    Returns:
        The rule and its rate.

    Raises:
        UserError: If the file is missing, unreadable, or of another rule.
    """
    path = found(str(file))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"checkpoint: {path} cannot be read: {reason}") from e
    record = content.get(KEY, content) if isinstance(content, Mapping) else {}
    if not {"rule", "settings", "lr", "weights"} <= set(record):
        raise UserError(
            f"checkpoint: {path} holds no trained rule: name a checkpoint of "
            "modules.MetaTask or a file of lightning_ecd.rules.write_rule"
        )
    if rule is None:
        if record["rule"] not in RULES:
            raise UserError(
                f"checkpoint: {path} is of {record['rule']}, which is none of "
                f"{', '.join(RULES)}: give the rule too"
            )
        make: Any = partial(RULES[record["rule"]], **record["settings"])
    elif type(rule).__name__ != record["rule"] or (rule.settings != record["settings"]):
        raise UserError(
            f"checkpoint: {path} is of {record['rule']} with {record['settings']}, "
            f"the rule is a {type(rule).__name__} with {rule.settings}"
        )
    else:
        make = partial(deepcopy, rule)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights it draws are not kept
            rule = make()
        rule.load_state_dict(record["weights"])
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint: {path} does not fit: {reason}") from error
    return TrainedRule(rule, record["lr"])


def found(name: str) -> Path:
    """Return the file of a path or of the name of a rule that comes along.

    Raises:
        UserError: If there is none.
    """
    path = Path(name).expanduser()
    shipped = SHIPPED / f"{name}.pt"
    if path.is_file():
        return path
    if "/" not in name and shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.pt")))
    raise UserError(
        f"checkpoint: {name} is neither a file nor one of the trained rules {names}"
    )
