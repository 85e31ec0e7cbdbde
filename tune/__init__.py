"""Searches over the hyper-parameters of any task and optimizer."""

from tune.domains import domain, search_space

__all__ = ["domain", "search_space"]
