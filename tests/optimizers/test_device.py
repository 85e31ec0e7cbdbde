"""The path of accelerators, where an update waits for nothing.

On a CPU the path is forced by declaring that no vector lies on the host, while every
way of reading a number out of a tensor is forbidden.
"""

import contextlib

import pytest
import torch

import lightning_ecd.flat
from lightning_ecd.kernels import Eager
from lightning_ecd.optimizers import BBI, REGISTRY, Descent, ECDSep, HeavyBall
from tests.cases import (
    build,
    closure_of,
    descend,
    ours,
    quadratic,
    rosenbrock,
    start,
    typical,
    values,
    variants,
)
from tests.optimizers.test_state import saved

READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__")


@pytest.fixture
def as_if_on_a_device(monkeypatch):
    """Make every vector count as one on an accelerator; return the switch.

    Bodies draw different numbers: both paths take the eager one.
    """

    host = lightning_ecd.flat.on_host
    monkeypatch.setattr(Descent, "body_of", staticmethod(lambda x: Eager()))
    monkeypatch.setenv("LIGHTNING_ECD_KERNELS", "eager")

    def switch(on=True):
        monkeypatch.setattr(
            lightning_ecd.flat, "on_host", (lambda v: False) if on else host
        )

    return switch


@contextlib.contextmanager
def no_waiting(optimizer, allow_bounces):
    """Forbid reading any tensor, but for the flag that says whether to bounce."""

    def refuse(self, *args):
        raise AssertionError("a tensor was read: on an accelerator this waits")

    with pytest.MonkeyPatch.context() as patch:
        originals = {name: getattr(torch.Tensor, name) for name in READS}
        for name in READS:
            patch.setattr(torch.Tensor, name, refuse)
        reads = []
        if allow_bounces:
            asked = optimizer._any

            def allowed(due):
                with pytest.MonkeyPatch.context() as inner:
                    flag = originals["__bool__"]
                    count = lambda t: (reads.append(1), flag(t))[1]  # noqa: E731
                    inner.setattr(torch.Tensor, "__bool__", count)
                    return asked(due)

            optimizer._any = allowed
        try:
            yield reads
        finally:
            if allow_bounces:
                del optimizer._any


def asks(settings):
    """Return whether an option is documented to read a number per step."""
    return settings.keys() & {"match_norm", "sgd_below", "redraw"}


def run(name, settings, loss, steps, waiting=True):
    params = start()
    optimizer = build(name, settings, params)
    closure = closure_of(optimizer, params, loss)
    optimizer.step(closure)  # the first step may ask
    guard = no_waiting(optimizer, name == "BBI")
    with contextlib.nullcontext([]) if waiting else guard as reads:
        for _ in range(steps):
            optimizer.step(closure)
    return params, optimizer, len(reads)


@variants(ours)
def test_equals_the_path_of_the_cpu_without_waiting(name, settings, as_if_on_a_device):
    expected, host, _ = run(name, settings, rosenbrock, 60)
    as_if_on_a_device()
    waits = asks(settings)
    params, device, reads = run(name, settings, rosenbrock, 60, waiting=waits)
    torch.testing.assert_close(values(params), values(expected), rtol=1e-12, atol=1e-13)
    assert reads == (60 if name == "BBI" else 0)
    assert set(host.info) == set(device.info)
    for key, number in host.info.items():
        if isinstance(number, torch.Tensor):  # a short vector
            torch.testing.assert_close(device.info[key], number, rtol=1e-9, atol=1e-9)
            continue
        assert isinstance(device.info[key], (torch.Tensor, float, int))
        assert float(device.info[key]) == pytest.approx(number, rel=1e-10, abs=1e-10)


@variants(lambda name: ours(name) and REGISTRY[name].traits.needs_gradient)
def test_rests_where_the_cpu_rests(name, settings, as_if_on_a_device):
    """Some batches lie below f_min, some far above the energy."""

    def noisy():
        calls = 0

        def value(params):
            nonlocal calls
            calls += 1
            factor = (1.0, 1.7, 0.4, 2.5, 0.9)[calls % 5]
            return factor * quadratic(params) - (50.0 if calls % 7 == 0 else 0.0)

        return value

    # a shift by such a batch leaves V far above E, where kicks amplify rounding
    steps = 20 if settings.get("self_tuning") else 60
    expected, host, _ = run(name, settings, noisy(), steps)
    as_if_on_a_device()
    waits = asks(settings)
    params, device, _ = run(name, settings, noisy(), steps, waiting=waits)
    torch.testing.assert_close(values(params), values(expected), rtol=1e-12, atol=1e-13)
    for count in {"skipped", "unscaled", "bounces"} & set(host.info):
        assert int(device.info[count]) == host.info[count]


@pytest.mark.parametrize("way", ["to the device", "to the CPU"])
@typical(ours)
def test_checkpoints_travel_between_cpu_and_device(
    name, settings, way, as_if_on_a_device
):
    expected = start()
    descend(build(name, settings, expected), expected, rosenbrock, 30)
    first, second = (False, True) if way == "to the device" else (True, False)
    as_if_on_a_device(first)
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, rosenbrock, 10)
    checkpoint = saved(optimizer.state_dict())
    as_if_on_a_device(second)
    resumed = build(name, settings, params)
    resumed.load_state_dict(checkpoint)
    descend(resumed, params, rosenbrock, 20)
    torch.testing.assert_close(values(params), values(expected), rtol=1e-11, atol=1e-12)


@typical(ours)
def test_state_dict_reads_device_numbers_out(name, settings, as_if_on_a_device):
    as_if_on_a_device()
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 9)
    group = optimizer.state_dict()["param_groups"][0]
    for number in group["system"].values():
        assert type(number) in (int, float) or number.dim() == 1


def test_the_sums_of_a_device_are_float64(as_if_on_a_device):
    as_if_on_a_device()
    for n in (5, 2**17):
        total = lightning_ecd.flat.square_norm(torch.ones(n))
        assert total.shape == () and total.dtype == torch.float64
        assert total.item() == n


gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)


@gpu
@needs_cuda
@variants(ours)
def test_cuda_steps_never_wait_and_equal_the_cpu(name, settings):
    if "bounce_every" in settings:  # draws differ between device types
        settings = {**settings, "bounce_every": 10**20, "patience": 10**25}
    expected = start()
    descend(build(name, settings, expected), expected, rosenbrock, 31)
    params = start(device="cuda")
    optimizer = build(name, settings, params)
    closure = closure_of(optimizer, params, rosenbrock)
    optimizer.step(closure)
    asked = getattr(optimizer, "_any", None)

    def allowed(due):
        torch.cuda.set_sync_debug_mode("default")
        flag = asked(due)
        torch.cuda.set_sync_debug_mode("error")
        return flag

    if asked is not None:
        optimizer._any = allowed
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            optimizer.step(closure)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if not optimizer.defaults.get("nu"):
        torch.testing.assert_close(
            values(params).cpu(), values(expected), rtol=1e-9, atol=1e-10
        )


@gpu
@needs_cuda
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (HeavyBall, {}),
        (BBI, {"bounce_every": 5, "fixed_bounces": 9}),
        (ECDSep, {"nu": 1e-3}),
    ],
)
def test_cuda_resumes_to_the_bit(cls, settings):
    straight, params = start(device="cuda"), start(device="cuda")
    descend(cls(straight, **settings), straight, rosenbrock, 30)
    optimizer = cls(params, **settings)
    descend(optimizer, params, rosenbrock, 10)
    resumed = cls(params, **settings)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    descend(resumed, params, rosenbrock, 20)
    assert torch.equal(values(params), values(straight))
