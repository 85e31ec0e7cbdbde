"""Searches over the hyper-parameters of any task and optimizer."""
