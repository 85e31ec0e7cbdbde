"""A trained rule as an ordinary optimizer."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from datamodules import ImageStreams, Quadratics
from lightning_ecd.errors import UserError
from lightning_ecd.flat import Layout
from lightning_ecd.optimizers import Learned
from lightning_ecd.rules import (
    HNNRule,
    LSTMRule,
    SmallFCRule,
    UpdateRule,
    read_rule,
    write_rule,
)
from lightning_ecd.rules.files import RULES, SHIPPED
from lightning_ecd.unrolling import FlatProblem, unroll
from modules import MLP, Classification, Quadratic
from modules.evaluation import Swarm
from tests.cases import closure_of, descend, quadratic, rosenbrock, start, values
from tests.unrolling.test_truncated import Bowl, windows

SETTINGS = {
    "HNNRule": {"preproc": True, "norm": True},
    "LSTMRule": {"preproc": True, "hidden": 7},
    "PortHamiltonianRule": {"modes": 2, "hidden": 4},
    "SmallFCRule": {"hidden": 9},
}


def made(name, seed=0):
    torch.manual_seed(seed)
    return RULES[name](**SETTINGS[name])


@pytest.mark.parametrize("name", RULES)
def test_both_drivers_give_the_same_parameters(name):
    """`unroll`, which meta-training uses, and the optimizer, on several tensors."""
    rule, problem = made(name).double(), FlatProblem(Bowl())
    (window,), batches = windows(1, 12, 12)
    steps = list(unroll(rule, problem, window, None, 0.05, torch.zeros(1).double()))
    runs = steps[-1][1]
    params = {key: nn.Parameter(p) for key, p in Bowl().initial(0).items()}
    optimizer = Learned(params.values(), lr=0.05, rule=rule)
    for batch in batches[:12, 0]:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = Bowl().loss(params, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    found = torch.cat([p.detach().flatten() for p in params.values()])
    assert (found - runs.x[0]).abs().max() < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_rows_are_runs_of_their_own(name):
    """Rows that hold several tensors, as `Evaluation` drives them."""
    rule, problem = made(name).double(), FlatProblem(Bowl())
    (window,), _ = windows(3, 8, 8)
    like = torch.zeros(1).double()
    steps = list(unroll(rule, problem, window, None, 0.05, like))
    starts = problem.starts(window.seed[0], like)
    swarm = Swarm(lambda p: Learned(p, lr=0.05, rule=rule), problem, starts)
    for t, (losses, runs) in enumerate(steps):
        assert torch.allclose(swarm.step(window.batch_of(t)), losses, rtol=1e-10)
        assert (swarm.x.detach() - runs.x).abs().max() < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_a_checkpoint_resumes_in_any_memory_format(name):
    """Also where the state has fewer entries than coordinates."""
    convolution = [(6, 3, 3, 3), (6,)]

    def params(memory_format):
        tensors = start(shapes=convolution, dtype=torch.float64)
        tensors[0].data = tensors[0].data.to(memory_format=memory_format)
        return tensors

    plain, last = params(torch.contiguous_format), params(torch.channels_last)
    a, b = (Learned(p, lr=1e-3, rule=made(name)) for p in (plain, last))
    descend(a, plain, quadratic, 5)
    descend(b, last, quadratic, 5)
    assert (values(plain) - values(last)).abs().max() < 1e-12
    b.load_state_dict(a.state_dict())
    descend(a, plain, quadratic, 5)
    descend(b, last, quadratic, 5)
    assert (values(plain) - values(last)).abs().max() < 1e-12


def test_new_parameters_begin_with_a_state_of_zeros():
    """The uneven state of the old ones stays theirs."""
    first, second = start(shapes=[(4, 3), (5,)]), start(shapes=[(3, 6), (2,)])
    optimizer = Learned(first, lr=1e-3, rule=made("SmallFCRule"))
    descend(optimizer, first, quadratic, 4)
    rows = optimizer.system["rows"].clone()
    optimizer.add_param_group({"params": second})
    optimizer.bind()
    sizes = optimizer.rule.pieces("rows", optimizer.flat.layout)
    assert optimizer.system["rows"].shape == (sum(sizes), 3)
    assert torch.equal(optimizer.system["rows"][: len(rows)], rows)
    assert not optimizer.system["rows"][len(rows) :].any()
    descend(optimizer, [*first, *second], quadratic, 3)


def test_groups_have_their_own_rates_and_decay():
    a, b, c, d = (nn.Parameter(torch.ones(4)) for _ in range(4))
    rule = made("PortHamiltonianRule")
    one = Learned(
        [{"params": [a]}, {"params": [b], "lr": 0.02, "weight_decay": 0.5}],
        lr=0.01,
        rule=rule,
    )
    two = Learned([c, d], lr=0.01, rule=rule)
    descend(one, [a, b], quadratic, 1)
    descend(two, [c, d], quadratic, 1)
    assert torch.equal(a, c)
    expected = (1 + 2 * (d - 1)) * (1 - 0.02 * 0.5)
    assert torch.allclose(b, expected)


def test_weights_are_not_shared_with_the_rule_that_was_given():
    rule = made("LSTMRule")
    params = start(shapes=[(3,)])
    optimizer = Learned(params, lr=0.1, rule=rule)
    descend(optimizer, params, quadratic, 2)
    assert next(rule.parameters()).dtype == torch.float32
    assert all(w.requires_grad for w in rule.parameters())
    assert not any(w.requires_grad for w in optimizer.rule.parameters())


@pytest.mark.parametrize("name", RULES)
def test_a_file_brings_class_settings_rate_and_weights(name, tmp_path):
    rule = made(name)
    write_rule(tmp_path / "rule.pt", rule, 0.07)
    found, lr = read_rule(tmp_path / "rule.pt")
    assert (type(found), found.settings, lr) == (type(rule), rule.settings, 0.07)
    for key, w in rule.state_dict().items():
        assert torch.equal(found.state_dict()[key], w)
    optimizer = Learned(start(), checkpoint=str(tmp_path / "rule.pt"))
    assert optimizer.param_groups[0]["lr"] == 0.07
    assert Learned(start(), 0.5, str(tmp_path / "rule.pt")).defaults["lr"] == 0.5


class Plain(UpdateRule):
    """Gradient descent, as a rule of the user's own."""

    state_size = 0

    def initial(self, x, layout):
        return {}

    def forward(self, grad, state, context):
        return -grad, {}


def test_a_rule_of_ones_own_works_and_its_files_need_it(tmp_path):
    params = start()
    before = values(params)
    optimizer = Learned(params, lr=0.01, rule=Plain())
    closure = closure_of(optimizer, params, quadratic)
    closure()
    g = torch.cat([p.grad.flatten() for p in params])
    optimizer.step(closure)
    assert torch.allclose(values(params), before - 0.01 * g)
    write_rule(tmp_path / "own.pt", Plain(), 0.01)
    with pytest.raises(UserError, match="is of Plain, which is none of.*give the rule"):
        Learned(start(), checkpoint=str(tmp_path / "own.pt"))
    given = Learned(start(), checkpoint=str(tmp_path / "own.pt"), rule=Plain())
    assert given.defaults["lr"] == 0.01


def test_a_rule_without_rate_or_file_is_refused():
    with pytest.raises(ValueError, match="lr must be given"):
        Learned(start(), rule=HNNRule())


def test_files_that_are_no_rules_are_one_clear_line(tmp_path):
    (tmp_path / "text").write_text("no rule")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    write_rule(tmp_path / "lstm.pt", LSTMRule(), 1.0)
    whole = (tmp_path / "lstm.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    record = torch.load(tmp_path / "lstm.pt")
    record["settings"]["hidden"] = 3
    torch.save(record, tmp_path / "misfit.pt")
    expected = {
        "missing.pt": "neither a file nor one of the trained rules .*lstm_quadratics",
        "text": "cannot be read",
        "cut.pt": "cannot be read",
        "other.pt": "holds no trained rule",
        "list.pt": "holds no trained rule",
        "misfit.pt": "does not fit",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as error:
            Learned(start(), checkpoint=str(tmp_path / name))
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(
        UserError, match="is of LSTMRule with .*, the rule is a HNNRule"
    ):
        Learned(start(), checkpoint=str(tmp_path / "lstm.pt"), rule=HNNRule())


def test_a_rule_of_other_settings_does_not_take_a_files_weights(tmp_path):
    """The weights of a normalised state would fit one that is not."""
    write_rule(tmp_path / "rule.pt", HNNRule(norm=True), 1.0)
    given = HNNRule(norm=False)
    before = [w.clone() for w in given.parameters()]
    with pytest.raises(UserError, match="'norm': True.*'norm': False"):
        read_rule(tmp_path / "rule.pt", given)
    read = read_rule(tmp_path / "rule.pt", HNNRule(norm=True)).rule
    assert read.norm
    assert all(map(torch.equal, before, given.parameters()))


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_a_hostile_file_is_refused_unexecuted(tmp_path, capsys):
    with open(tmp_path / "rule.pt", "wb") as file:
        pickle.dump(Hostile(), file, protocol=2)
    torch.save({"rule": Hostile()}, tmp_path / "other.pt")
    for name in ("rule.pt", "other.pt"):
        with pytest.raises(UserError, match="cannot be read"):
            Learned(start(), checkpoint=str(tmp_path / name))
    assert "executed" not in capsys.readouterr().out


def test_a_state_of_other_weights_is_refused():
    a, b = start(), start()
    optimizer = Learned(a, lr=0.01, rule=made("HNNRule"))
    descend(optimizer, a, quadratic, 2)
    other = Learned(b, lr=0.01, rule=made("HNNRule", seed=1))
    with pytest.raises(ValueError, match="rule with other weights"):
        other.load_state_dict(optimizer.state_dict())


def test_copies_carry_the_rule():
    params = start()
    optimizer = Learned(params, lr=0.01, rule=made("SmallFCRule"))
    descend(optimizer, params, rosenbrock, 2)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert isinstance(copied.rule, SmallFCRule)
        assert copied.defaults["lr"] == 0.01
        expected = optimizer.rule.state_dict()
        for key, weight in copied.rule.state_dict().items():
            assert torch.equal(weight, expected[key])


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.pt")), ids=lambda f: f.stem)
def test_every_shipped_rule_descends_and_states_what_made_it(file):
    assert file.stat().st_size < 50_000
    made_by = file.with_suffix(".yaml").read_text()
    assert "seed_everything:" in made_by and "modules.MetaTask" in made_by
    data, problem = Quadratics(window=100, test_runs=50), FlatProblem(Quadratic())
    if "Quadratics" not in made_by:  # images: the smaller ones that come along
        data = ImageStreams("Digits", window=100, test_runs=4)
        problem = FlatProblem(Classification(partial(MLP, 64, [20], 10, "sigmoid")))
    data.setup("test")
    (window,) = data.test_dataloader()
    starts = problem.starts(window.seed[0], torch.zeros(1))
    swarm = Swarm(lambda p: Learned(p, checkpoint=file.stem), problem, starts)
    losses = [swarm.step(window.batch_of(t)).mean().item() for t in range(100)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_row_holds_one_tensor_unless_told_otherwise():
    rule = HNNRule(norm=True).double()
    x = torch.randn(4, 6).double()
    grads = torch.randn(3, 4, 6).double()
    for layout in (None, Layout(((2,), (4,)))):
        p = nn.Parameter(x.clone().T.contiguous().T)
        optimizer = Learned([p], lr=0.1, rule=rule)
        optimizer.rows, optimizer.row_layout = 4, layout
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()
        shapes = layout.shapes if layout else ((6,),)
        for row in range(4):
            pieces = x[row].clone().split([s[0] for s in shapes])
            alone = [nn.Parameter(piece.clone()) for piece in pieces]
            other = Learned(alone, lr=0.1, rule=rule)
            for grad in grads:
                split = grad[row].split([s[0] for s in shapes])
                for q, g in zip(alone, split, strict=True):
                    q.grad = g.clone()
                other.step()
            found = torch.cat([q.detach() for q in alone])
            assert (found - p.detach()[row]).abs().max() < 1e-12
