"""Products with the curvature of a loss, against closed forms and nested autograd."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_ecd.curvature import Loss, fixed_batches
from lightning_ecd.errors import UserError
from modules import CharLSTM

N = 12


def draw(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draws, dtype=torch.float64)


def symmetric(n, seed=0):
    A = draw(n, n, seed=seed)
    return A + A.T


class Quadratic(nn.Module):
    """½ xᵀAx - bᵀx, at x = 0; the batch is not looked at."""

    def __init__(self, A, b):
        super().__init__()
        self.A, self.b = A, b
        self.first = nn.Parameter(torch.zeros(2, 3, dtype=A.dtype))
        self.second = nn.Parameter(torch.zeros(len(b) - 6, dtype=A.dtype))

    def loss(self, batch):
        x = torch.cat([self.first.reshape(-1), self.second])
        return 0.5 * x @ self.A @ x - self.b @ x


def net(seed=0, *layers):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = layers or (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        return nn.Sequential(*modules).double()


def labelled(samples=N, seed=1):
    labels = torch.arange(samples) % 3
    return draw(samples, 3, seed=seed), labels


def classification(model, batches=None, **settings):
    """Cross-entropy of a network over batches of unequal size."""
    x, y = labelled()
    batches = batches or [(x[:7], y[:7]), (x[7:], y[7:])]
    return Loss(model, batches, lambda b: cross_entropy(model(b[0]), b[1]), **settings)


def as_function(model, criterion=cross_entropy):
    """The whole loss as a function of the flat vector, without our code."""
    shapes = [p.shape for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    x, y = labelled()

    def f(flat, inputs=x, labels=y):
        parts = flat.split([shape.numel() for shape in shapes])
        values = {
            name: part.view(shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        return criterion(torch.func.functional_call(model, values, (inputs,)), labels)

    return f


@pytest.fixture(params=[1, 32], ids=["one by one", "vmapped"])
def together(request):
    return request.param


def test_a_quadratic_has_its_matrix_as_hessian(together):
    A, b = symmetric(9), draw(9)
    loss = Loss(Quadratic(A, b), [torch.zeros(1)], together=together)
    V = draw(5, 9)
    torch.testing.assert_close(loss.hvp(V), V @ A, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.hvp(V[0]), A @ V[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.hessian(block=4), A, rtol=0, atol=1e-12)
    x = draw(9, seed=5)
    loss.move(x)
    torch.testing.assert_close(loss.gradient(), A @ x - b)
    assert loss.value() == pytest.approx((x @ A @ x / 2 - b @ x).item())


def test_a_loss_linear_in_its_parameters_has_no_curvature():
    slope = nn.Linear(3, 1).double()
    loss = Loss(slope, [draw(4, 3)], lambda x: slope(x).mean())
    assert not loss.hvp(draw(2, loss.n)).any()
    assert not loss.hessian().any()


def test_unequal_batches_weigh_by_their_samples():
    loss, f = classification(model := net()), as_function(net())
    flat = loss.x
    assert loss.value() == pytest.approx(f(flat).item(), rel=1e-14)
    expected = torch.autograd.functional.jacobian(f, flat)
    torch.testing.assert_close(loss.gradient(), expected)
    assert all(p.grad is None for p in model.parameters())


def test_hessian_and_products_equal_nested_autograd(together):
    loss, f = classification(net(), together=together), as_function(net())
    H = torch.autograd.functional.hessian(f, loss.x)
    torch.testing.assert_close(loss.hessian(block=5), H, rtol=0, atol=1e-14)
    V = draw(7, loss.n)
    torch.testing.assert_close(loss.hvp(V), V @ H, rtol=0, atol=1e-13)


def test_gauss_newton_is_the_jacobian_around_the_softmax_hessian(together):
    loss = classification(model := net(), together=together)
    x, _ = labelled()
    J = torch.autograd.functional.jacobian(
        lambda flat: as_function(model, lambda z, y: z)(flat), loss.x
    )  # (N, 3, n)
    p = model(x).softmax(1).detach()
    Hz = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("ian,iab,ibm->nm", J, Hz, J) / N
    V = draw(4, loss.n)
    torch.testing.assert_close(loss.ggnvp(V), V @ G, rtol=0, atol=1e-14)


def test_gauss_newton_of_linear_regression_is_its_hessian():
    model = net(0, nn.Linear(3, 2))
    x, y = draw(N, 3), draw(N, 2, seed=2)
    loss = Loss(model, [(x, y)], lambda b: mse_loss(model(b[0]), b[1]))
    V = draw(3, loss.n)
    torch.testing.assert_close(loss.ggnvp(V), loss.hvp(V), rtol=0, atol=1e-14)
    features = torch.cat([x, torch.ones(N, 1).double()], 1)
    block = features.T @ features / N  # mean over 2 outputs of (wᵀφ - y)²
    weight = loss.hessian()[:3, :3]
    torch.testing.assert_close(weight, block[:3, :3])


def test_logistic_regression_has_its_textbook_hessian():
    model = net(0, nn.Linear(3, 1, bias=False))
    x, y = draw(N, 3), (torch.arange(N) % 2).double()
    bce = nn.functional.binary_cross_entropy_with_logits
    loss = Loss(model, [(x, y)], lambda b: bce(model(b[0])[:, 0], b[1]))
    p = model(x)[:, 0].sigmoid().detach()
    expected = x.T @ (x * (p * (1 - p))[:, None]) / N
    torch.testing.assert_close(loss.hessian(), expected)
    eye = torch.eye(3).double()
    torch.testing.assert_close(loss.ggnvp(eye), expected)


def per_sample(model):
    f, (x, y) = as_function(model), labelled()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda w, i=i: f(w, x[i : i + 1], y[i : i + 1]), flat
            )
            for i in range(N)
        ]
    )


def test_fisher_is_the_second_moment_of_single_gradients():
    loss, g = classification(net()), per_sample(net())
    F = g.T @ g / N
    V = draw(3, loss.n)
    torch.testing.assert_close(loss.fvp(V), V @ F, rtol=0, atol=1e-14)
    torch.testing.assert_close(loss.fvp(V[0]), F @ V[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(loss.fisher_diagonal(), F.diagonal())
    centered = g.var(0, correction=0)
    torch.testing.assert_close(loss.fisher_diagonal(centered=True), centered)


def test_single_gradients_come_in_chunks_that_fit(monkeypatch):
    loss = classification(net())
    whole = torch.cat([*loss.sample_gradients()])
    monkeypatch.setattr("lightning_ecd.curvature.loss._AT_ONCE", 2 * loss.n)
    chunks = [*loss.sample_gradients()]
    assert [len(chunk) for chunk in chunks] == [2, 2, 2, 1, 2, 2, 1]
    torch.testing.assert_close(torch.cat(chunks), whole)
    torch.testing.assert_close(whole, per_sample(net()))


def test_convolutions_pooling_and_unused_parameters(together):
    model = net(
        0, nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    )
    model.register_parameter("idle", nn.Parameter(torch.ones(2).double()))
    x, y = draw(N, 1, 4, 4), labelled()[1]
    loss = Loss(
        model, [(x, y)], lambda b: cross_entropy(model(b[0]), b[1]), together=together
    )
    f, V = as_function(model), draw(3, loss.n)
    H = torch.autograd.functional.hessian(lambda w: f(w, x, y), loss.x)
    torch.testing.assert_close(loss.hvp(V), V @ H, rtol=0, atol=1e-13)
    assert loss.ggnvp(V).shape == V.shape
    assert torch.cat([*loss.sample_gradients()]).shape == (N, loss.n)


def test_batchnorm_and_dropout_are_in_evaluation_mode_and_come_back():
    model = net(0, nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[1].eval()  # frozen: it must not wake up
    model[0].weight.requires_grad_(False)
    loss, before = classification(model), [b.clone() for b in model.buffers()]
    V = draw(2, loss.n)
    for product in (loss.hvp, loss.ggnvp, loss.fvp):
        assert torch.equal(product(V), product(V))
    assert loss.value() == loss.value()
    assert model.training and model[2].training and not model[1].training
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert loss.n == 4 + 8 + 15


def test_products_work_under_no_grad():
    loss, V = classification(net()), draw(2, 31)
    expected = [loss.hvp(V), loss.ggnvp(V), loss.fvp(V), loss.gradient()]
    with torch.no_grad():
        found = [loss.hvp(V), loss.ggnvp(V), loss.fvp(V), loss.gradient()]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_values_leave_the_point_where_it_was_even_after_an_error():
    loss, f = classification(net()), as_function(net())
    x, points = loss.x, draw(4, 31)
    expected = torch.stack([f(point) for point in points])
    torch.testing.assert_close(loss.values(points), expected)
    assert torch.equal(loss.x, x)
    with pytest.raises(ZeroDivisionError), loss.restored():
        loss.move(points[0])
        raise ZeroDivisionError
    assert torch.equal(loss.x, x)


def test_what_has_no_outputs_or_no_single_samples_is_refused():
    model = net()
    (x, y) = labelled()
    norm = Loss(model, [(x, y)], lambda b: model[0].weight.square().sum())
    with pytest.raises(UserError, match="loss of the network's outputs"):
        norm.ggnvp(draw(norm.n))
    model = net()
    spread = Loss(model, [x], lambda b: model(b).sum().item())
    with pytest.raises(UserError, match="loss of every single sample"):
        next(spread.sample_gradients())


def test_bad_arguments_are_named():
    model = net()
    with pytest.raises(ValueError, match="batches"):
        Loss(model, [], lambda b: b)
    with pytest.raises(ValueError, match="together must be at least 1, got 0"):
        classification(model, together=0)
    with pytest.raises(ValueError, match="trainable"):
        Loss(nn.ReLU(), [draw(2)], lambda b: b)


def test_every_batch_of_every_pass_is_told():
    told = []
    loss = classification(net(), progress=lambda: told.append(1))
    loss.hvp(draw(5, loss.n))
    loss.value()
    assert len(told) == 4


def test_fixed_batches_are_the_first_samples_in_chunks():
    x, y = draw(10, 2).float(), torch.arange(10)
    source = [(x[:6], y[:6]), (x[6:], y[6:])]
    found = fixed_batches(source, 8, chunk=4, dtype=torch.float64)
    assert [len(batch[1]) for batch in found] == [4, 2, 2]
    assert torch.cat([batch[1] for batch in found]).tolist() == list(range(8))
    assert found[0][0].dtype == torch.float64 and found[0][1].dtype == torch.int64
    uneven = [(x[:6], y[:3])] * 5
    assert fixed_batches(uneven, 8, 2)[0][0].shape == (6, 2)
    assert len(fixed_batches(uneven, 8, 2)) == 2


def test_a_recurrent_state_is_no_part_of_the_function():
    torch.manual_seed(0)
    model = CharLSTM(vocabulary=5, embedding=3, hidden=4).double()
    tokens = torch.randint(5, (4, 7), generator=torch.Generator().manual_seed(0))
    batches = [(part[:, :-1], part[:, 1:]) for part in tokens.split(2)]
    loss = Loss(model, batches, lambda b: cross_entropy(model(b[0]), b[1]))
    whole = (tokens[:, :-1], tokens[:, 1:])  # without a state the rows are alike
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names, shapes = [name for name, _ in named], [p.shape for _, p in named]
    model.eval()

    def f(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        views = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        model.forget(False)
        values = dict(zip(names, views, strict=True))
        return cross_entropy(
            torch.func.functional_call(model, values, (whole[0],)), whole[1]
        )

    assert loss.value() == pytest.approx(f(loss.x).item()) == loss.value()
    gradient = torch.autograd.functional.jacobian(f, loss.x)
    v = draw(loss.n)
    Hv = torch.autograd.functional.vhp(f, loss.x, v)[1]
    torch.testing.assert_close(loss.gradient(), gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.hvp(v), Hv, rtol=0, atol=1e-11)
    torch.testing.assert_close(loss.hvp(torch.stack([v, 2 * v]))[1], 2 * Hv)
    assert loss.ggnvp(v) @ v >= 0 and not model.states
