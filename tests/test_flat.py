"""Two vectors instead of many tensors: sums, binding, layouts."""

import pytest
import torch
from torch import nn

from lightning_ecd.flat import FlatParameters, dot, square_norm

LAWS = {
    "normal": lambda n, draws: torch.randn(n, generator=draws),
    "uniform": lambda n, draws: torch.rand(n, generator=draws),
    "constant": lambda n, draws: torch.full((n,), 0.1),
    "large and small": lambda n, draws: torch.logspace(-6, 3, n),
}
#: Around the threshold of the plain sum, with and without a remainder of rows.
SIZES = [0, 1, 7, 511, 65_535, 65_536, 65_537, 66_047, 131_072, 201_528, 1_000_003]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", SIZES)
def test_float32_sums_agree_with_float64(n, law):
    draws = torch.Generator().manual_seed(n)
    a, b = LAWS[law](n, draws), LAWS[law](n, draws)
    exact = float(a.double() @ a.double())
    assert square_norm(a) == pytest.approx(exact, rel=1e-6)
    product = float(a.double() @ b.double())
    scale = float(a.double().norm() * b.double().norm())
    assert abs(dot(a, b) - product) <= 1e-6 * scale


@pytest.mark.parametrize(
    ("law", "n"),
    [
        ("normal", 10_000_000),
        ("uniform", 10_000_000),
        ("constant", 10_000_000),
        ("constant", 9_999_991),
    ],
)
def test_float32_sums_of_ten_million_agree_with_float64(law, n):
    draws = torch.Generator().manual_seed(1)
    a = LAWS[law](n, draws)
    exact = float((a.double() ** 2).sum())
    assert square_norm(a) == pytest.approx(exact, rel=1e-6)
    b = a.flip(0)
    product = float((a.double() * b.double()).sum())
    assert abs(dot(a, b) - product) <= 1e-6 * exact


def test_sums_of_slices_agree_with_float64():
    whole = torch.full((300_001,), 0.1)
    part = whole[1:200_002]
    exact = float((part.double() ** 2).sum())
    assert square_norm(part) == pytest.approx(exact, rel=1e-6)
    other = whole[3:200_004]
    assert dot(part, other) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_half_precision_are_taken_in_float32(dtype):
    a = torch.full((100_000,), 0.1, dtype=dtype)
    exact = float((a.double() ** 2).sum())
    assert square_norm(a) == pytest.approx(exact, rel=1e-6)


def test_sums_on_the_cpu_are_floats():
    assert type(square_norm(torch.ones(3))) is float
    assert type(dot(torch.ones(3), torch.ones(3))) is float


def tensors():
    torch.manual_seed(0)
    return [
        torch.randn(2, 3, requires_grad=True),
        torch.randn((), requires_grad=True),
        torch.randn(2, 3, 4, 5)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_(),
        torch.randn(0, 4, requires_grad=True),
        torch.randn(4, 3).t().requires_grad_(),
    ]


def test_binding_keeps_values_shapes_strides_and_identity():
    params = tensors()
    copies = [p.detach().clone() for p in params]
    strides = [p.stride() for p in params]
    flat = FlatParameters([params])
    for p, copied, stride in zip(params, copies, strides, strict=True):
        assert torch.equal(p, copied) and p.stride() == stride
        assert p.is_leaf and p.requires_grad
    assert flat.x.numel() == sum(p.numel() for p in params)
    assert flat.sizes == [p.numel() for p in params]


def test_writing_the_vectors_writes_parameters_and_gradients():
    params = tensors()
    flat = FlatParameters([params])
    flat.x.fill_(2.0)
    flat.g.fill_(3.0)
    assert all((p == 2.0).all() and (p.grad == 3.0).all() for p in params)
    with torch.no_grad():
        params[0].zero_()
    assert flat.x[:6].abs().sum() == 0 and flat.x[6:].min() == 2.0


def test_autograd_accumulates_into_the_gradient_vector():
    params = tensors()
    flat = FlatParameters([params])
    sum((p**2).sum() for p in params).backward()
    torch.testing.assert_close(flat.g, 2 * flat.x)


def test_gradients_present_are_kept_at_binding():
    p, q = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    p.grad = torch.full((2,), 5.0)
    flat = FlatParameters([[p, q]])
    assert flat.g.tolist() == [5.0, 5.0, 0.0, 0.0, 0.0]


def test_spans_follow_the_groups_without_frozen_parameters():
    params = tensors()
    params[0].requires_grad_(False)
    flat = FlatParameters([params[:2], [], params[2:]])
    assert flat.spans == [(0, 1), (1, 1), (1, 1 + 120 + 12)]


def test_foreign_gradients_are_gathered_and_none_is_zero():
    params = tensors()
    flat = FlatParameters([params])
    flat.g.fill_(1.0)
    params[0].grad = torch.full_like(params[0], 4.0)
    params[1].grad = None
    flat.gather_gradients()
    assert flat.g[:7].tolist() == [4.0] * 6 + [0.0]
    assert (flat.g[7:] == 1.0).all()
    flat.g.zero_()
    assert not params[0].grad.any() and not params[1].grad.any()


def test_zeroing_restores_the_views():
    params = tensors()
    flat = FlatParameters([params])
    params[0].grad = None
    flat.zero_gradients()
    flat.g.fill_(1.0)
    assert (params[0].grad == 1.0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p[0], "data", p[0].data.clone()),
        lambda p: p[1].requires_grad_(False),
        lambda p: p.append(torch.ones(2)),
        lambda p: p.pop(),
        lambda p: p[5].requires_grad_(True),
    ],
    ids=["moved", "frozen", "added", "removed", "thawed"],
)
def test_lost_views_are_noticed(change):
    params = [*tensors(), torch.ones(3)]
    flat = FlatParameters([params])
    assert flat.holds([params])
    change(params)
    assert not flat.holds([params])


def test_views_of_another_vector_have_the_layout_of_the_parameters():
    params = tensors()
    flat = FlatParameters([params])
    vector = torch.arange(float(flat.x.numel()))
    views = flat.views(vector)
    assert [v.shape for v in views] == [p.shape for p in params]
    assert [v.stride() for v in views] == [p.stride() for p in params]
    views[0].fill_(-1.0)
    assert vector[:6].tolist() == [-1.0] * 6


def test_adopted_vectors_keep_what_stays_and_start_new_ones_at_zero():
    params = tensors()
    params[1].requires_grad_(False)
    former = FlatParameters([params])
    vector = torch.randn(former.x.numel())
    before = [view.clone() for view in former.views(vector)]
    params[1].requires_grad_(True)
    params[4].requires_grad_(False)
    params[2].data = params[2].data.contiguous()
    flat = FlatParameters([[params[3], params[2]], [params[1], params[0]]])
    views = flat.views(flat.adopt(vector, former))
    assert torch.equal(views[1], before[1])
    assert torch.equal(views[3], before[0])
    assert views[2].item() == 0.0


def test_contiguous_order_round_trips():
    params = tensors()
    flat = FlatParameters([params])
    vector = torch.randn(flat.x.numel())
    ordered = flat.to_contiguous(vector)
    expected = torch.cat([v.contiguous().reshape(-1) for v in flat.views(vector)])
    assert torch.equal(ordered, expected) and not torch.equal(ordered, vector)
    assert torch.equal(flat.from_contiguous(ordered), vector)


def test_contiguous_parameters_are_in_order_already():
    flat = FlatParameters([[torch.ones(2, 3), torch.ones(4)]])
    vector = torch.randn(flat.x.numel())
    assert torch.equal(flat.to_contiguous(vector), vector)
    assert torch.equal(flat.from_contiguous(vector), vector)


def test_a_vector_of_another_size_is_refused():
    flat = FlatParameters([[torch.ones(3, requires_grad=True)]])
    with pytest.raises(ValueError, match="4 entries.* 3"):
        flat.from_contiguous(torch.ones(4))


def test_contiguous_order_joins_both_memory_formats():
    orders = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
        flat = FlatParameters([list(net.parameters())])
        orders.append(flat.to_contiguous(flat.x))
    assert torch.equal(*orders)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, 1).expand(3, 4),
        lambda: torch.ones(4, 6)[:, ::2],
        lambda: torch.ones(4, 6)[1:3, 1:3],
    ],
    ids=["expanded", "stepped", "cut out"],
)
def test_tensors_with_holes_or_overlaps_become_contiguous(make):
    p = make().detach().requires_grad_()
    flat = FlatParameters([[p]])
    assert p.is_contiguous() and flat.x.numel() == p.numel()
    flat.x.copy_(torch.arange(float(p.numel())))
    assert p.reshape(-1).tolist() == flat.x.tolist()


def test_sizes_of_one_do_not_disturb_the_layout():
    p = torch.randn(1, 5, 1, 2).to(memory_format=torch.channels_last).requires_grad_()
    before = p.detach().clone()
    flat = FlatParameters([[p]])
    assert torch.equal(p, before) and flat.x.numel() == 10
    assert flat.from_contiguous(flat.to_contiguous(flat.x)).equal(flat.x)


def test_tied_parameters_given_once_stay_tied():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    flat = FlatParameters([list(nn.Sequential(first, second).parameters())])
    flat.x.fill_(1.5)
    assert (second.weight == 1.5).all() and first.weight is second.weight


def test_what_one_vector_cannot_hold_is_refused():
    real = torch.ones(2, requires_grad=True)
    for other, message in (
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, dtype=torch.float64), "share dtype"),
        (torch.ones(2, device="meta"), "share dtype and device"),
    ):
        with pytest.raises(ValueError, match=message):
            FlatParameters([[real, other.requires_grad_()]])
