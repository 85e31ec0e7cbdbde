"""Networks that do not fit the data are refused at the start, and left as they are."""

from functools import partial

import pytest
import torch
from torch import nn

from datamodules import Collocation, Digits, Gaussians, SmallImages
from lightning_ecd.errors import UserError
from modules import MLP, PINN, Classifier, LikelihoodRatio, Poisson, Regression
from modules.refusals import output_shape
from tests.modules.toys import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SGD = partial(torch.optim.SGD, lr=0.1)


def noisy(inputs, outputs=1):
    """A network that remembers and is moved by what it sees in training."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 3),
        nn.BatchNorm1d(3),
        nn.Dropout(0.5),
        nn.Linear(3, outputs),
    )


#: Tasks by their data, of a network; what fits it, and its outputs.
CASES = {
    "classifier": (partial(Classifier, optimizer=SGD), Digits, 64, 10),
    "regression": (partial(Regression, optimizer=SGD), SmallImages, 64, 1),
    "images": (
        partial(Regression, optimizer=SGD),
        partial(Digits, targets="numbers"),
        64,
        1,
    ),
    "ratio": (
        partial(LikelihoodRatio, optimizer=SGD),
        partial(Gaussians, dimensions=2, train_size=9, val_size=9, test_size=9),
        2,
        1,
    ),
    "pinn": (
        partial(PINN, equation=Poisson, optimizer=SGD),
        partial(Collocation, interior=9, boundary=3),
        2,
        1,
    ),
}


def attached(task, data, folder):
    """Return the task of a trainer whose data are ready."""
    task.trainer = trainer(folder)
    task.trainer.datamodule = data()
    task.trainer.datamodule.setup("fit")
    return task


@pytest.mark.parametrize("case", CASES)
def test_the_question_leaves_network_and_random_numbers_alone(case, tmp_path):
    make, data, inputs, outputs = CASES[case]
    task = attached(make(lambda: noisy(inputs, outputs)), data, tmp_path)
    task.network[2].eval()  # frozen by its user
    before = [t.clone() for t in task.network.state_dict().values()]
    state = torch.get_rng_state()
    task.setup("fit")
    assert torch.equal(torch.get_rng_state(), state)
    after = task.network.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    modes = [layer.training for layer in task.network]
    assert modes == [True, True, False, True, True]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wrong", ["inputs", "outputs"])
def test_networks_that_do_not_fit_are_refused(case, wrong, tmp_path):
    make, data, inputs, outputs = CASES[case]
    if wrong == "inputs":
        network, named = lambda: noisy(inputs + 1, outputs), "does not take"
    else:
        few = outputs - 1 if outputs > 1 else 3
        network, named = lambda: noisy(inputs, few), "network.outputs to"
    task = attached(make(network), data, tmp_path)
    with pytest.raises(UserError, match=named):
        task.setup("fit")
    assert task.network.training


def test_the_shape_is_that_of_one_sample_in_the_network_s_own_type():
    assert output_shape(MLP(4, [3], 2).double(), (4,), "rows") == (1, 2)


@pytest.mark.parametrize(
    ("shape", "named"),
    [((3,), r"take rows: set model.network.inputs to 3 \("), ((4, 2, 2), r"rows: \(")],
)
def test_every_complaint_of_a_layer_is_one_line(shape, named):
    network = nn.BatchNorm1d(4)  # a RuntimeError of widths, a ValueError of dimensions
    with pytest.raises(UserError, match=named) as found:
        output_shape(network, shape, "rows")
    assert "\n" not in str(found.value)
