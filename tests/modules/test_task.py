"""Any optimizer drives a task: parity, schedulers, groups, refusals, divergence."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from pytorch_lightning.cli import ReduceLROnPlateau
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from datamodules import Digits, Loader
from lightning_ecd.errors import Diverged, UserError
from lightning_ecd.optimizers import BBI, REGISTRY, HeavyBall
from modules import Classifier, LeNet
from modules.refusals import refuse_incompatible
from tests.modules.toys import (
    Regression,
    Twice,
    loader,
    maker,
    network,
    trainer,
    weights,
)

NAMES = list(REGISTRY)
OURS = [name for name, entry in REGISTRY.items() if hasattr(entry.cls, "traits")]


def task_of(name, **settings):
    """A task whose small batches all evaluations of a step see whole."""
    return Regression(maker(name, **settings), minibatches=1)


# -- every optimizer ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_equals_a_plain_loop(name, tmp_path):
    task = task_of(name)
    trainer(tmp_path, precision="64-true").fit(task, loader(8, torch.float64))

    plain, batches = network().double(), loader(8, torch.float64)
    optimizer = maker(name)(plain.parameters())
    for epoch in range(2):
        batches.set_epoch(epoch)
        for x, y in batches:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = mse_loss(plain(x).squeeze(-1), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    expected = nn.utils.parameters_to_vector(plain.parameters())
    assert torch.allclose(weights(task), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, weights(Regression(SGD)).double(), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_fast_dev_run(name, tmp_path):
    task = task_of(name)
    start = weights(task)
    runner = trainer(tmp_path, fast_dev_run=True)
    runner.fit(task, loader(8), loader(8))
    assert runner.global_step == 1
    assert torch.isfinite(weights(task)).all()
    assert not torch.equal(weights(task), start)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_bfloat16_stays_near_float32(name, tmp_path):
    ends = []
    for precision in ("32-true", "bf16-mixed"):
        task = task_of(name, lr=1e-3)
        trainer(tmp_path, precision=precision).fit(task, loader(8))
        assert weights(task).dtype == torch.float32
        ends.append(weights(task))
    assert torch.allclose(*ends, rtol=0, atol=0.02)
    assert not torch.equal(*ends)


@pytest.mark.parametrize("name", NAMES)
def test_clipping_warns_by_the_optimizers_own_sentence(name, tmp_path):
    sentence = REGISTRY[name].traits.clipping
    runner = trainer(tmp_path, gradient_clip_val=0.1, max_steps=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(task_of(name), loader(8))
    texts = [str(w.message) for w in caught if "gradient_clip_val" in str(w.message)]
    assert len(texts) == (sentence != "fine")
    assert all(sentence in text and name in text for text in texts)
    assert runner.global_step == 2


def test_energy_conserving_optimizers_do_warn_of_clipping():
    assert REGISTRY["BBI"].traits.clipping != "fine"


# -- schedulers and groups ---------------------------------------------------------


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 2), ("step", 8)])
@pytest.mark.parametrize("name", ["SGD", "BBI"])
def test_a_scheduler_advances_by_epoch_or_by_step(name, interval, steps, tmp_path):
    halve = partial(ExponentialLR, gamma=0.5)
    schedule = {"scheduler": halve, "scheduler_interval": interval}
    task = Regression(maker(name), minibatches=1, **schedule)
    runner = trainer(tmp_path)
    runner.fit(task, loader(16))
    lr = runner.optimizers[0].param_groups[0]["lr"]
    assert lr == pytest.approx(0.01 * 0.5**steps, rel=1e-12)


def test_the_schedulers_learning_rate_takes_effect(tmp_path):
    freeze = partial(ExponentialLR, gamma=0.0)
    one, two = (
        Regression(maker("HeavyBall", momentum=0.0), scheduler=freeze) for _ in range(2)
    )
    trainer(tmp_path, max_epochs=1).fit(one, loader(16))
    trainer(tmp_path, max_epochs=2).fit(two, loader(16))
    assert torch.equal(weights(one), weights(two))


def test_reduce_on_plateau_watches_its_metric(tmp_path):
    # Nothing improves by 100 in absolute terms: every epoch after the first halves.
    reduce = partial(
        ReduceLROnPlateau,
        monitor="val/loss",
        factor=0.5,
        patience=0,
        threshold=100.0,
        threshold_mode="abs",
    )
    runner = trainer(tmp_path, max_epochs=3)
    runner.fit(Regression(maker("BBI"), scheduler=reduce), loader(16), loader(16))
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0025)


def test_groups_give_parameters_their_own_settings(tmp_path):
    own = {"*.bias": {"weight_decay": 0.0}, "network.3.*": {"lr": 0.5}}
    task = Regression(maker("HeavyBall", weight_decay=0.1), groups=own)
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(task, loader(16))
    found = [
        (sorted(p.numel() for p in g["params"]), g["lr"], g["weight_decay"])
        for g in runner.optimizers[0].param_groups
    ]
    # The rest, both biases (the first match counts), the last layer's weight.
    assert found == [([40], 0.01, 0.1), ([1, 8], 0.01, 0.0), ([8], 0.5, 0.1)]


def test_a_pattern_that_matches_nothing_is_refused():
    task = Regression(maker("SGD"), groups={"*.scale": {"lr": 1.0}})
    with pytest.raises(UserError, match=r"\*\.scale.*network\.0\.weight"):
        task.configure_optimizers()


# -- refusals ----------------------------------------------------------------------


class FSDPStrategy:
    """Named as Lightning's."""


def stub(**settings):
    defaults = {
        "accumulate_grad_batches": 1,
        "precision": "32-true",
        "world_size": 1,
        "strategy": object(),
        "gradient_clip_val": None,
    }
    return SimpleNamespace(**(defaults | settings))


def check(make, minibatches=1, **settings):
    refuse_incompatible(
        stub(**settings), make([nn.Parameter(torch.ones(1))]), minibatches
    )


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_full_and_bfloat16_precision_are_allowed(name, precision):
    check(maker(name), precision=precision)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_scaling_is_refused_where_the_record_says_so(name):
    if REGISTRY[name].traits.scaler:
        check(maker(name), precision="16-mixed")
    else:
        with pytest.raises(UserError, match=f"precision=16-mixed.*{name}.*bf16-mixed"):
            check(maker(name), precision="16-mixed")


def test_gradient_scaling_is_refused_for_bbi():
    with pytest.raises(UserError, match="16-mixed"):
        check(BBI, precision="16-mixed")


@pytest.mark.parametrize("name", OURS)
def test_a_flat_optimizer_refuses_shards_and_odd_precisions(name):
    with pytest.raises(UserError, match=f"strategy.*{name}.*use ddp"):
        check(maker(name), strategy=FSDPStrategy())
    with pytest.raises(UserError, match=f"precision=transformer-engine.*{name}"):
        check(maker(name), precision="transformer-engine")


def test_accumulation_is_refused_for_several_evaluations(tmp_path):
    with pytest.raises(UserError, match="accumulate_grad_batches=4.*Twice.*2 times"):
        check(Twice, accumulate_grad_batches=4)
    check(HeavyBall, accumulate_grad_batches=4)
    runner = trainer(tmp_path, accumulate_grad_batches=2)
    with pytest.raises(UserError, match="accumulate_grad_batches=2"):
        runner.fit(Regression(Twice), loader(4, minibatches=2))


def test_what_a_record_excludes_is_refused():
    class Alone(Twice):
        traits = Twice.traits.__class__(
            "toy", "", "", ddp=False, bf16=False, accumulation=False
        )

    for settings, named in (
        ({"world_size": 2}, "devices"),
        ({"precision": "bf16-true"}, "precision=bf16-true"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
    ):
        with pytest.raises(UserError, match=named):
            check(Alone, **settings)


# -- divergence --------------------------------------------------------------------


class Breaks(Regression):
    """Its loss is not a number from the third batch on."""

    def loss(self, batch):
        loss = super().loss(batch)
        return loss * float("nan") if len(set(self.seen)) > 2 else loss


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_stops_the_run(name, tmp_path):
    task = Breaks(maker(name), minibatches=1)
    runner = trainer(tmp_path, log_every_n_steps=1)
    with pytest.raises(Diverged, match=rf"step 2: the loss is nan.*{name}"):
        runner.fit(task, loader(4))
    if name in OURS:  # they stop before the update
        assert torch.isfinite(weights(task)).all()


# -- other people's callbacks ------------------------------------------------------


class Thaw(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.network[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.network[0], optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_finetuning_thaws_parameters(name, tmp_path):
    task = task_of(name)
    start = task.network[0].weight.detach().clone()
    runner = trainer(tmp_path, max_epochs=1, callbacks=Thaw())
    runner.fit(task, loader(8))
    assert torch.equal(task.network[0].weight, start)

    task = task_of(name)
    trainer(tmp_path, max_epochs=2, callbacks=Thaw()).fit(task, loader(8))
    assert not torch.equal(task.network[0].weight, start)
    assert torch.isfinite(weights(task)).all()


class Mean(StochasticWeightAveraging):
    """Remembers the weights at the end of every epoch.

    Lightning averages at the start of its second epoch and later: the ends of 0, 1, 2.
    """

    def __init__(self):
        super().__init__(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1)
        self.ends = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            self.ends.append(weights(pl_module))


def test_groups_leave_frozen_parameters_out():
    task = Regression(maker("SGD"), groups={"*.bias": {"lr": 0.5}})
    task.network[0].requires_grad_(False)
    found = [
        [p.numel() for p in g["params"]]
        for g in task.configure_optimizers().param_groups
    ]
    assert found == [[8], [1]]
    task.network.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable"):
        task.configure_optimizers()


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_weight_averaging_averages_the_epochs_ends(name, tmp_path):
    task, mean = task_of(name), Mean()
    trainer(tmp_path, max_epochs=4, callbacks=mean).fit(task, loader(8))
    expected = torch.stack(mean.ends[:3]).mean(0)
    assert torch.allclose(weights(task), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_moving_average_of_weights_runs(name, tmp_path):
    plain, averaged = task_of(name), task_of(name)
    trainer(tmp_path).fit(plain, loader(8))
    average = EMAWeightAveraging(decay=0.9, update_starting_at_step=0)
    trainer(tmp_path, callbacks=average).fit(averaged, loader(8))
    assert torch.isfinite(weights(averaged)).all()
    assert not torch.equal(weights(plain), weights(averaged))


# -- classification ----------------------------------------------------------------


class Flat(nn.Module):
    """Logits that say class 1 for every image, with certainty."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 60.0, 0.0]))

    def forward(self, images):
        return self.logits.expand(len(images), 3)


def test_metrics_weigh_batches_by_their_size(tmp_path):
    labels = torch.tensor([1, 1, 1, 1, 0])  # batches of 4 and 1
    batches = Loader((torch.zeros(5, 1), labels), batch_size=4, order="sequential")
    task = Classifier(Flat, SGD)
    result = trainer(tmp_path).test(task, batches, verbose=False)[0]
    assert result["test/accuracy"] == pytest.approx(0.8)
    assert result["test/loss"] == pytest.approx(12.0)  # four zeros and one 60


@pytest.mark.parametrize(
    ("network_settings", "named"),
    [({"size": 28}, "Digits.*(1, 8, 8)"), ({"size": 8, "outputs": 9}, "9 outputs")],
)
def test_a_network_that_does_not_fit_the_data_is_refused(
    network_settings, named, tmp_path
):
    task = Classifier(partial(LeNet, **network_settings), SGD)
    with pytest.raises(UserError, match=named.replace("(", r"\(").replace(")", r"\)")):
        trainer(tmp_path).fit(task, datamodule=Digits())
