"""Unconventional optimizers on PyTorch Lightning.

The package root imports nothing, so that `lightning-ecd --help` answers at
once; the optimizers live in `lightning_ecd.optimizers`.
"""

__version__ = "0.1.0"
