"""Small meta-tasks; on two forked processes: ``python -m tests.modules.meta_tasks F``.

Both ranks write their final weights to ``F/<case>-<rank>.pt``.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy

from datamodules import Quadratics
from lightning_ecd.rules import HNNRule, LSTMRule
from modules import MetaTask, Quadratic
from tests.modules.toys import trainer, weights

#: Case -> arguments of the task.
CASES = {
    "tbptt": {},
    "pes": {"estimator": "pes", "std": 0.05},
    "rescaled": {"rescale": "parameter", "rescale_by": 3.0},
}


def rule_of(name):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return {
            "hnn": partial(HNNRule, norm=True),
            "lstm": partial(LSTMRule, hidden=4),
        }[name]()


def task(case="tbptt", rule="lstm", optimizer=None, **settings):
    optimizer = optimizer or partial(torch.optim.Adam, lr=0.01)
    arguments = {"lr": 0.1, **CASES.get(case, {}), **settings}
    return MetaTask(
        partial(rule_of, rule), partial(Quadratic, 4), optimizer, **arguments
    )


def data(**settings):
    defaults = {"dimensions": 4, "runs": 4, "steps": 10, "window": 4}
    defaults |= {"runs_per_epoch": 2, "val_runs": 6, "test_runs": 6}
    return Quadratics(**(defaults | settings))


def fit(folder, module, streams=None, **settings):
    runner = trainer(folder, precision="64-true", log_every_n_steps=1, **settings)
    runner.fit(module, datamodule=streams or data())
    return runner


class Reports(Callback):
    """Writes every rank's weights."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        torch.save(weights(pl_module), f"{self.path}-{trainer.global_rank}.pt")


def main(folder):
    for case in CASES:
        strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
        reports = Reports(Path(folder) / case)
        fit(folder, task(case), devices=2, strategy=strategy, callbacks=reports)


if __name__ == "__main__":
    main(sys.argv[1])
