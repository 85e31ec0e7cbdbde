"""Networks that learn to update: rules, and the files they are kept in."""

from lightning_ecd.rules.files import RULES, TrainedRule, read_rule, write_rule
from lightning_ecd.rules.hnn import HNNRule
from lightning_ecd.rules.lstm import LSTMRule
from lightning_ecd.rules.port_hamiltonian import PortHamiltonianRule
from lightning_ecd.rules.rule import Context, State, UpdateRule
from lightning_ecd.rules.small_fc import SmallFCRule

__all__ = [
    "RULES",
    "Context",
    "HNNRule",
    "LSTMRule",
    "PortHamiltonianRule",
    "SmallFCRule",
    "State",
    "TrainedRule",
    "UpdateRule",
    "read_rule",
    "write_rule",
]
