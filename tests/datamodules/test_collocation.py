import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import Collocation
from datamodules.collocation import PointLoader
from lightning_ecd.errors import UserError
from tests.reference.poisson import disc_points

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def small(**settings):
    defaults = {"interior": 23, "boundary": 11, "steps_per_epoch": 5, "seed": 3}
    return Collocation(**(defaults | settings))


def batches(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def rows(points):
    return sorted(map(tuple, points.tolist()))


# -- where the points are --------------------------------------------------------


def test_points_of_the_disc_are_those_of_the_reference_code():
    inner, outer = Collocation(interior=50, boundary=20, seed=42).points()
    wanted = disc_points(42, 50, 20)
    assert torch.allclose(inner, torch.tensor(wanted[0]), rtol=0, atol=1e-7)
    assert torch.allclose(outer, torch.tensor(wanted[1]), rtol=0, atol=1e-7)


def test_drawing_leaves_the_global_generators_alone():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    small().points()
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("dimensions", [1, 2, 7])
def test_the_ball_is_filled_evenly_and_its_sphere_has_radius_one(dimensions):
    data = small(dimensions=dimensions, interior=4000, boundary=1000)
    inner, outer = (part.double() for part in data.points())
    assert inner.shape == (4000, dimensions) and outer.shape == (1000, dimensions)
    # uniform in the ball: |x|^D is uniform in [0, 1], standard error 0.0046
    volume = inner.norm(dim=1) ** dimensions
    assert abs(volume.mean() - 1 / 2) < 0.02
    assert abs((volume < 0.25).double().mean() - 0.25) < 0.03
    assert (outer.norm(dim=1) - 1).abs().max() < 1e-6
    assert inner.mean(0).abs().max() < 0.05 and outer.mean(0).abs().max() < 0.15


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_boundary_points_of_the_box_lie_on_its_faces(dimensions):
    data = small(shape="box", dimensions=dimensions, interior=4000, boundary=2000)
    inner, outer = (part.double() for part in data.points())
    assert inner.abs().max() < 1 and inner.mean(0).abs().max() < 0.05
    assert abs(inner.square().mean() - 1 / 3) < 0.02
    on_face = outer.abs() == 1
    assert (on_face.sum(1) == 1).all()
    for axis in range(dimensions):
        for sign in (-1, 1):
            share = (outer[:, axis] == sign).double().mean()
            assert abs(share - 1 / (2 * dimensions)) < 0.04


# -- batches ----------------------------------------------------------------------


def test_every_batch_holds_all_points_by_default():
    data = small()
    found = batches(data.train_dataloader())
    assert len(found) == 5
    assert all(same(batch, data.points()) for batch in found)


def test_mini_batches_go_through_all_points_before_any_comes_again():
    data = small(batch_size=6, steps_per_epoch=10)  # 4 parts
    found = batches(data.train_dataloader())
    assert len(found) == 10
    for kind, points in enumerate(data.points()):
        first, second = (
            torch.cat([batch[kind] for batch in found[k : k + 4]]) for k in (0, 4)
        )
        assert rows(first) == rows(second) == rows(points)
        assert not torch.equal(first, second)
        sizes = {len(batch[kind]) for batch in found}
        assert max(sizes) - min(sizes) <= 1
    assert max(len(batch[0]) for batch in found) <= 6


def test_a_batch_of_several_mini_batches_is_their_union():
    single = small(batch_size=6, steps_per_epoch=8)
    double = small(batch_size=6, steps_per_epoch=4, minibatches=2)
    one, two = (batches(data.train_dataloader(), 2) for data in (single, double))
    for k, batch in enumerate(two):
        for kind in (0, 1):
            parts = torch.cat([one[2 * k][kind], one[2 * k + 1][kind]])
            assert torch.equal(batch[kind], parts)


def test_ranks_share_every_batch():
    data = small(batch_size=6, boundary=12)
    whole = PointLoader(data.points, 2, batches=4, shuffled=True, seed=1)
    shares = [
        PointLoader(
            data.points, 2, batches=4, shuffled=True, seed=1, rank=r, world_size=3
        )
        for r in range(3)
    ]
    parts = [batches(loader, 1) for loader in shares]
    for k, batch in enumerate(batches(whole, 1)):
        for kind in (0, 1):
            assert torch.equal(
                batch[kind], torch.cat([part[k][kind] for part in parts])
            )


def test_order_and_points_are_functions_of_seed_and_epoch():
    one, other = (small(batch_size=6, redraw_every=2) for _ in range(2))
    loaders = one.train_dataloader(), other.train_dataloader()
    batches(loaders[0], 0), batches(loaders[0], 5)
    torch.manual_seed(1), np.random.seed(1)
    for a, b in zip(batches(loaders[0], 3), batches(loaders[1], 3), strict=True):
        assert same(a, b)
    assert not same(batches(loaders[0], 3)[0], batches(loaders[0], 2)[0])
    different = small(batch_size=6, redraw_every=2, seed=4).train_dataloader()
    assert not same(batches(loaders[0], 3)[0], batches(different, 3)[0])


def test_points_are_drawn_anew_on_schedule():
    never, second = small(), small(redraw_every=2)
    assert same(never.points(0), never.points(100))
    assert same(second.points(0), never.points(0))
    draws = [second.points(epoch)[0].clone() for epoch in range(6)]
    for epoch in (0, 2, 4):
        assert torch.equal(draws[epoch], draws[epoch + 1])
    assert not torch.equal(draws[1], draws[2]) and not torch.equal(draws[3], draws[4])


def test_validation_sees_the_training_points_of_its_epoch_and_test_fresh_ones():
    data = small(redraw_every=1, batch_size=6)
    for epoch in (0, 3):
        found = batches(data.val_dataloader(), epoch)
        parts = [torch.cat(part) for part in zip(*found, strict=True)]
        assert same(parts, data.points(epoch))
    fresh = [torch.cat(p) for p in zip(*data.test_dataloader(), strict=True)]
    assert [len(part) for part in fresh] == [23, 11]
    known = {row for epoch in range(4) for row in rows(data.points(epoch)[0])}
    assert not known & set(rows(fresh[0]))
    again = [torch.cat(p) for p in zip(*data.predict_dataloader(), strict=True)]
    assert same(fresh, again)


# -- with Lightning ----------------------------------------------------------------


class Recorder(pl.LightningModule):
    """A module of one parameter that remembers the points it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append([part.clone() for part in batch])
        return self.weight * batch[0].mean().to(self.weight)

    def validation_step(self, batch, batch_idx):
        self.validated.append([part.clone() for part in batch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(pl.Callback):
    def __init__(self, steps, path):
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


def fit(data, *callbacks, checkpoint=None, **settings):
    module = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        **(quiet | {"max_epochs": 3} | settings),
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize("steps", [3, 7, 10])
@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_resumed_run_sees_the_batches_that_were_left(tmp_path, batch_size, steps):
    settings = {"batch_size": batch_size, "redraw_every": 1}
    path = tmp_path / "middle.ckpt"
    whole = fit(small(**settings), SaveAfter(steps, path))
    assert len(whole.seen) == 15
    rest = fit(small(**settings), checkpoint=path)
    assert len(rest.seen) == 15 - steps
    for a, b in zip(whole.seen[steps:], rest.seen, strict=True):
        assert same(a, b)


def test_validation_in_a_fit_goes_over_the_points_just_trained_on():
    data = small(redraw_every=1)
    module = fit(data)
    assert len(module.validated) == 3
    for epoch, batch in enumerate(module.validated):
        assert same(batch, data.points(epoch))
        assert same(batch, module.seen[5 * epoch])


def test_points_have_the_precision_of_the_trainer():
    module = fit(small(), precision="64-true", max_epochs=1)
    assert module.seen[0][0].dtype == torch.float64
    wanted = torch.tensor(disc_points(3, 23, 11)[0], dtype=torch.float64)
    assert torch.allclose(module.seen[0][0], wanted, rtol=0, atol=1e-15)
    assert fit(small(), max_epochs=1).seen[0][0].dtype == torch.float32


def test_changed_data_are_refused_within_an_epoch(tmp_path):
    path = tmp_path / "middle.ckpt"
    fit(small(), SaveAfter(3, path))
    with pytest.raises(UserError, match="seed = 3, but now seed = 4"):
        fit(small(seed=4), checkpoint=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "torus"}, "shape must be one of ball, box, got 'torus'"),
        ({"dimensions": 0}, "dimensions must be at least 1, got 0"),
        ({"interior": 0}, "interior must be at least 1, got 0"),
        ({"boundary": 0}, "boundary must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"redraw_every": -1}, "redraw_every must be at least 0, got -1"),
        ({"minibatches": 0}, "minibatches must be at least 1, got 0"),
        ({"seed": -1}, r"seed must lie in \[0, 2\^32\), got -1"),
        ({"batch_size": 0}, r"batch_size must lie in \[1, 23\], got 0"),
        ({"batch_size": 24}, r"batch_size must lie in \[1, 23\], got 24"),
        ({"batch_size": 1}, "boundary must be at least 23, .* got 11"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
