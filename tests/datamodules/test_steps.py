"""Batches of nothing: counted, resumed."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules import Steps
from tests.modules.toys import trainer

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Recorder(pl.LightningModule):
    """A module of one parameter that remembers which steps it made."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps, self.validations = [], 0

    def training_step(self, batch):
        self.steps.append((self.current_epoch, batch[0].item()))
        return (self.weight - len(self.steps) / 7) ** 2

    def validation_step(self, batch):
        self.validations += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(pl.Callback):
    def __init__(self, epoch, batch, path):
        self.when, self.path = (epoch, batch), path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.when:
            trainer.save_checkpoint(self.path)


def every_step(epochs=2, steps=5):
    return [(epoch, step) for epoch in range(epochs) for step in range(steps)]


def test_an_epoch_has_as_many_steps_as_asked_and_one_validation(tmp_path):
    module = Recorder()
    trainer(tmp_path).fit(module, Steps(5))
    assert module.steps == every_step()
    assert module.validations == 2


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 4), (1, 2)])
def test_a_resumed_epoch_has_the_steps_that_were_left(epoch, batch, tmp_path):
    path, whole, rest = tmp_path / "a.ckpt", Recorder(), Recorder()
    trainer(tmp_path, callbacks=SaveAfter(epoch, batch, path)).fit(whole, Steps(5))
    trainer(tmp_path).fit(rest, Steps(5), ckpt_path=path)
    assert rest.steps == every_step()[epoch * 5 + batch + 1 :]


def test_evaluations_are_one_batch():
    steps = Steps(5)
    for make in (steps.val_dataloader, steps.test_dataloader, steps.predict_dataloader):
        assert len(make()) == 1


def test_the_settings_are_plain():
    assert dict(Steps(7).hparams) == {"steps_per_epoch": 7}


def test_no_steps_are_refused_by_name():
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
        Steps(0)
