"""Short searches on digits by the command `tune`."""

import csv

from tests.cli.conftest import EXPERIMENT

SEARCH = f"""
experiment: {EXPERIMENT}
arguments:
  - --trainer.max_epochs=2
  - --trainer.limit_train_batches=4
  - --trainer.limit_val_batches=1
  - --trainer.limit_test_batches=1
  - --trainer.log_every_n_steps=2
  - --trainer.accelerator=cpu
metric: val/accuracy
mode: max
backend: local
samples: 3
"""


def rows_of(file):
    with open(file, newline="") as table:
        return list(csv.DictReader(table))


def small(folder, more="", name="small.yaml"):
    """Write a search of two short trials of the experiment's own optimizer."""
    short = SEARCH.replace("samples: 3", "samples: 2").replace("epochs=2", "epochs=1")
    (folder / name).write_text(f'{short}space: {{lr: "LogUniform(0.01, 0.5)"}}\n{more}')
    return folder / name
