"""The share of labels among the most probable classes."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from datamodules import Loader
from modules import Classifier
from tests.modules.toys import trainer

# places of the labels among the classes by probability: first, second, third, fourth
LOGITS = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 4)
LABELS = torch.tensor([0, 1, 2, 3])


class Given(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, logits):
        return logits + self.shift


@pytest.mark.parametrize(("top", "share"), [(2, 0.5), (3, 0.75), (9, 1.0)])
def test_labels_among_the_first_k_count(top, share, tmp_path):
    task = Classifier(Given, partial(SGD, lr=0.0), top=top)
    runner = trainer(tmp_path)
    batches = Loader((LOGITS, LABELS), batch_size=3, order="sequential")
    (found,) = runner.test(task, batches, verbose=False)
    assert found[f"test/top{top}_accuracy"] == pytest.approx(share)
    assert found["test/accuracy"] == pytest.approx(0.25)
    assert f"val/top{top}_accuracy" in task.metric_names


def test_only_the_first_counts_unless_asked(tmp_path):
    task = Classifier(Given, partial(SGD, lr=0.0))
    (found,) = trainer(tmp_path).test(
        task, Loader((LOGITS, LABELS), batch_size=4), verbose=False
    )
    assert set(found) == {"test/accuracy", "test/loss"}


def test_no_place_at_all_is_refused():
    with pytest.raises(ValueError, match="^top must be at least 1"):
        Classifier(Given, partial(SGD, lr=0.0), top=0)
