from functools import partial

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from datamodules import Digits
from lightning_ecd.callbacks import (
    BatchNormEstimate,
    Checkpoints,
    WeightAverage,
    WholeFiles,
)
from lightning_ecd.errors import UserError
from modules import Classifier
from tests.modules.toys import Twice, trainer

MODES = ("exact", "random", "evaluation")
STATISTICS = ("running_mean", "running_var")


def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(12, 12),
            nn.BatchNorm1d(12, momentum=0.3),
            nn.Linear(12, 10),
        )


sgd = partial(SGD, lr=0.05, momentum=0.9)


def data(**settings):
    return Digits(**({"batch_size": 100, "eval_batch_size": 90} | settings))


class Recorder(Callback):
    """What a validation sees, what is trained, and the random states."""

    def __init__(self):
        self.validated, self.trained, self.draws = [], [], []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *args):
        assert not any(m.training for m in pl_module.modules())
        if batch_idx == 0:
            self.validated.append(copied(pl_module.state_dict()))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(copied(dict(pl_module.named_parameters())))

    def on_train_epoch_end(self, trainer, pl_module):
        self.draws.append(torch.get_rng_state())


def copied(state):
    return {name: value.detach().clone() for name, value in state.items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def fit(folder, *callbacks, ckpt_path=None, optimizer=sgd, loaded=None, **settings):
    """Return the task, the record and the trainer of a short run."""
    torch.manual_seed(11)  # of the dropout
    module, record = Classifier(network, optimizer), Recorder()
    options = {"max_epochs": 3, "callbacks": [*callbacks, record]} | settings
    fitting = trainer(folder, **options)
    fitting.fit(module, datamodule=loaded or data(), ckpt_path=ckpt_path)
    return module, record, fitting


def estimated(layers, batches):
    """Return mean and variance at both norms, averaged over batches: by hand."""
    found = {3: [], 7: []}
    for images in batches:
        x = images.double()
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.BatchNorm1d):
                mean, variance = x.mean(0), x.var(0)
                found[i].append((mean, variance))
                x = (x - mean) / (x.var(0, unbiased=False) + layer.eps).sqrt()
                x = x * layer.weight.double() + layer.bias.double()
            elif isinstance(layer, nn.Linear):
                x = x @ layer.weight.double().T + layer.bias.double()
            elif isinstance(layer, nn.Flatten | nn.ReLU):
                x = layer(x)
    return found


def check(state, expected):
    for i, (mean, variance) in expected.items():
        for name, value in zip(STATISTICS, (mean, variance), strict=True):
            found = state[f"network.{i}.{name}"].double()
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 37}, {"last": "drop"}, {"order": "replacement"}],
)
def test_exact_statistics_are_means_over_one_pass_of_the_training_set(
    tmp_path, settings
):
    loaded = data(**settings)
    module, record, _ = fit(tmp_path, BatchNormEstimate(), loaded=loaded)
    indices, size = loaded.split()[0], loaded.batch_size
    order = torch.randperm(1250, generator=epoch_draws(0))
    count = -(-1250 // size)
    bounds = [i * 1250 // count for i in range(count + 1)]
    images = loaded.read("train")[0][indices[order]] / 16
    batches = [images[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    with torch.no_grad():
        found = estimated(module.network, batches)
    expected = {
        i: [torch.stack(values).mean(0) for values in zip(*pairs, strict=True)]
        for i, pairs in found.items()
    }
    check(record.validated[-1], expected)
    assert module.network[3].momentum == 0.1 and module.network[7].momentum == 0.3


def epoch_draws(epoch):
    from datamodules.memory import ORDER_STREAM
    from lightning_ecd.randomness import generator

    return generator(0, ORDER_STREAM, epoch)


def test_mini_batches_are_those_of_one_evaluation(tmp_path):
    one, two = Classifier(network, sgd), Classifier(network, partial(Twice, lr=0.01))
    for module, parts in ((one, 1), (two, 2)):
        testing = trainer(tmp_path, callbacks=[BatchNormEstimate()])
        loaded = data(minibatches=parts)
        testing.test(module, datamodule=loaded, verbose=False)
    assert same(one.network.state_dict(), two.network.state_dict())


@pytest.mark.parametrize("mode", ["evaluation", "random"])
def test_the_original_ways_move_the_statistics_with_the_layers_momentum(tmp_path, mode):
    module, loaded = Classifier(network, sgd), data(batch_size=50)
    shown = []
    module.network[0].register_forward_hook(lambda _, x, __: shown.append(x[0].clone()))
    testing = trainer(tmp_path, callbacks=[BatchNormEstimate(mode)])
    testing.test(module, datamodule=loaded, verbose=False)
    images, _ = loaded.read("test" if mode == "evaluation" else "train")
    images = images / 16
    if mode == "evaluation":  # 297 fit into one batch of 1024
        batches = [images]
    else:
        batches = shown[1 : 1 + 25]  # the first is the check of the shape
        assert {len(batch) for batch in batches} == {50}
        assert torch.equal(shown[26], images_of_test(loaded)[:74])
        rows = {tuple(row.tolist()) for batch in batches for row in batch.flatten(1)}
        allowed = images[loaded.split()[0]].flatten(1)
        assert rows <= {tuple(row.tolist()) for row in allowed}
        assert len(rows) < 900  # of 1250 draws, 1 - 1/e = 63 % are different images
    with torch.no_grad():
        found = estimated(module.network, batches)
    expected = {}
    for i, pairs in found.items():
        momentum = module.network[i].momentum
        mean, variance = torch.zeros(12).double(), torch.ones(12).double()
        for m, v in pairs:
            mean = (1 - momentum) * mean + momentum * m
            variance = (1 - momentum) * variance + momentum * v
        expected[i] = mean, variance
    check(module.state_dict(), expected)


def images_of_test(loaded):
    return loaded.read("test")[0] / 16


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_the_statistics_changes(tmp_path, mode):
    options = {"val_check_interval": 5, "num_sanity_val_steps": 1}
    plain, alone, one = fit(tmp_path, **options)
    module, record, other = fit(tmp_path, BatchNormEstimate(mode), **options)
    assert len(alone.trained) == 39
    for before, after in zip(alone.trained, record.trained, strict=True):
        assert same(before, after)
    for before, after in zip(alone.draws, record.draws, strict=True):
        assert torch.equal(before, after)
    buffers = [f.optimizers[0].state_dict()["state"] for f in (one, other)]
    for i, state in buffers[0].items():
        assert torch.equal(state["momentum_buffer"], buffers[1][i]["momentum_buffer"])
    names = [name for name, _ in module.named_buffers()]
    assert not same({n: plain.state_dict()[n] for n in names}, module.state_dict())
    # The check before the training shows the statistics that the network starts with
    assert torch.equal(record.validated[0]["network.3.running_mean"], torch.zeros(12))


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, mode):
    def parts(folder):
        return BatchNormEstimate(mode), Checkpoints(str(folder), every_n_steps=3)

    whole, *_ = fit(tmp_path / "whole", *parts(tmp_path / "whole"))
    folder = tmp_path / "parts"
    for steps in (13 + 4, 13 + 13):  # within an epoch, and after its validation
        fit(folder, *parts(folder), max_epochs=-1, max_steps=steps)
        file = str(folder / "last.ckpt")
        module, *_ = fit(folder, *parts(folder), ckpt_path=file)
        assert same(whole.state_dict(), module.state_dict())


def test_dropout_is_off_during_the_estimate_and_as_before_after_it(tmp_path):
    class Modes(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            pl_module.network[1].train()  # whatever state the layers are in

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_):
            assert pl_module.network[1].training == (batch_idx == 0)
            pl_module.network[1].eval()

    seen, module = [], Classifier(network, sgd)
    for i in (1, 5, 3, 7):
        module.network[i].register_forward_hook(
            lambda layer, *_: seen.append((type(layer).__name__, layer.training))
        )
    testing = trainer(tmp_path, callbacks=[Modes(), BatchNormEstimate(), Recorder()])
    testing.validate(module, datamodule=data(), verbose=False)
    estimating = seen[4 : 4 + 4 * 13]  # before it the check of the shape
    assert set(estimating) == {("Dropout", False), ("BatchNorm1d", True)}
    assert {mode for _, mode in seen[4 + 4 * 13 :]} == {False}


def test_the_averaged_weights_get_statistics_of_their_own(tmp_path):
    average = WeightAverage(start_epoch=1, update_batchnorm=False)
    _, record, _ = fit(tmp_path, average, BatchNormEstimate())
    state = record.validated[-1]  # the mean of two epochs
    own = record.trained[2 * 13 - 1]
    assert not torch.equal(state["network.2.weight"], own["network.2.weight"])
    module = Classifier(network, sgd)
    module.load_state_dict(state)
    testing = trainer(tmp_path, callbacks=[BatchNormEstimate()])
    testing.validate(module, datamodule=data(), verbose=False)
    assert same(module.state_dict(), state)


def test_checkpoints_hold_the_statistics_that_were_validated(tmp_path):
    parts = BatchNormEstimate(), Checkpoints(str(tmp_path), every_n_steps=0)
    _, record, _ = fit(tmp_path, *parts, max_epochs=1)
    stored = WholeFiles().load_checkpoint(tmp_path / "last.ckpt")
    assert same(stored["state_dict"], record.validated[-1])


def test_limits_of_the_trainer_limit_the_pass(tmp_path):
    module, shown = Classifier(network, sgd), []
    module.network[0].register_forward_hook(lambda _, x, __: shown.append(len(x[0])))
    testing = trainer(tmp_path, callbacks=[BatchNormEstimate()], limit_train_batches=2)
    testing.test(module, datamodule=data(), verbose=False)
    assert shown == [1, 96, 96, 74, 74, 74, 75]  # shape; estimate; test


class Foreign(Digits):
    """Hands out torch's own loaders."""

    def train_dataloader(self):
        images, labels = self.read("train")
        return DataLoader(TensorDataset(images / 16, labels), 150, shuffle=True)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_other_loaders_are_gone_through_as_they_are_or_refused(tmp_path):
    module = Classifier(network, sgd)
    testing = trainer(tmp_path, callbacks=[BatchNormEstimate()])
    before = torch.get_rng_state()
    testing.test(module, datamodule=Foreign(), verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.network[3].num_batches_tracked == 10
    testing = trainer(tmp_path, callbacks=[BatchNormEstimate("random")])
    with pytest.raises(UserError, match="mode=random needs .* not a DataLoader"):
        testing.test(module, datamodule=Foreign(), verbose=False)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mode must be exact, random or evaluation"):
        BatchNormEstimate("train")
    fitting = trainer(tmp_path, callbacks=[BatchNormEstimate()])
    with pytest.raises(UserError, match="needs a data module"):
        fitting.fit(Classifier(network, sgd), data().train_dataloader())


def test_a_network_without_normalisation_is_left_alone_with_a_warning(tmp_path):
    def linear():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    testing = trainer(tmp_path, callbacks=[BatchNormEstimate()])
    with pytest.warns(UserWarning, match="no BatchNorm layer"):
        testing.test(Classifier(linear, sgd), datamodule=data(), verbose=False)
