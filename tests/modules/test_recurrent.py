from functools import partial

import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from datamodules import Digits, Text
from lightning_ecd.callbacks import BatchNormEstimate, Checkpoints
from lightning_ecd.errors import UserError
from modules import (
    CharLSTM,
    Classifier,
    LanguageModel,
    SmallCharLSTM,
    StreamLSTM,
    WordLSTM,
)
from tests.cli.conftest import cli  # noqa: F401
from tests.modules.toys import Twice, trainer

ALPHABET = "abcdefgh"
sgd = partial(SGD, lr=0.2, momentum=0.5)


@pytest.fixture
def text(tmp_path):
    """A file of 900 letters of which each tells the next, mostly."""
    draws = torch.rand(900, generator=torch.Generator().manual_seed(1)) < 0.8
    place, content = 0, ALPHABET
    for usual in draws[8:]:
        place = (place + (3 if usual else 4)) % 8
        content += ALPHABET[place]
    (tmp_path / "text.txt").write_text(content)
    return str(tmp_path / "text.txt")


def network(dropout=0.0, batchnorm=False):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return StreamLSTM(8, 6, 7, dropout=dropout, batchnorm=batchnorm)


def data(path, **settings):
    defaults = {"batch_size": 4, "window": 9, "eval_batch_size": 2}
    return Text(path, **(defaults | settings))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (WordLSTM, 66_034_000),
        (lambda: WordLSTM(width=200, dropout=0, bound=0.1), 4_653_200),
        (CharLSTM, 260_282),
        (SmallCharLSTM, 32_640),
    ],
)
def test_networks_are_as_large_as_the_original_ones(build, expected):
    with torch.device("meta"):
        parameters = list(build().parameters())
    assert sum(p.numel() for p in parameters if p.requires_grad) == expected


def test_one_layer_computes_what_an_lstm_is():
    torch.manual_seed(0)
    net = StreamLSTM(5, 3, 4, layers=1).double()
    tokens = torch.randint(5, (2, 6))
    found = net(tokens)
    [layer] = net.layers
    w, u, b, c = layer.parameters()
    h = cell = torch.zeros(2, 4).double()
    for t in range(6):
        x = net.embedding.weight[tokens[:, t]]
        i, f, g, o = (x @ w.T + b + h @ u.T + c).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        h = o.sigmoid() * cell.tanh()
        logits = h @ net.head.weight.T + net.head.bias
        torch.testing.assert_close(found[..., t], logits)


def test_the_small_one_is_torchs_lstm_with_a_learned_start():
    torch.manual_seed(1)
    net = SmallCharLSTM(5, 4).double()
    tokens = torch.randint(5, (2, 6))
    lstm = nn.LSTM(5, 4, batch_first=True).double()
    order = torch.tensor([0, 1, 3, 2])  # torch: in, forget, change, out
    rows = (order[:, None] * 4 + torch.arange(4)).flatten()
    for p, value in zip(
        lstm.parameters(),
        (net.read.weight.T, net.gates.weight, net.gates.bias, torch.zeros(16)),
        strict=True,
    ):
        p.data = value.detach().double()[rows]
    h, c = net.start.repeat(1, 2, 1).unsqueeze(1)
    outputs, _ = lstm(nn.functional.one_hot(tokens, 5).double(), (h, c))
    expected = net.head(outputs).transpose(1, 2)
    torch.testing.assert_close(net(tokens), expected)
    torch.testing.assert_close(net(tokens), expected)  # no state is carried on
    assert all((p != 0).any() for p in net.parameters())


def test_pieces_give_what_the_whole_gives():
    net, tokens = network().eval(), torch.randint(8, (3, 20))
    whole = net(tokens)
    net.forget(False)
    pieces = [net(part) for part in tokens.split([7, 7, 6], 1)]
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    net.train()  # training has a state of its own
    torch.testing.assert_close(net(tokens[:, :5]), whole[..., :5])
    net.eval()
    net(tokens[:1])  # another number of streams starts anew
    torch.testing.assert_close(net(tokens[:1]).shape, whole[:1].shape)


def test_gradients_stop_at_the_beginning_of_a_batch():
    net, tokens = network(), torch.randint(8, (3, 10))
    net(tokens[:, :5]).sum().backward()
    first = net.states[True]
    assert not any(part.requires_grad for pair in first for part in pair)
    net(tokens[:, 5:]).sum().backward()  # would complain of a freed graph


def test_the_normalisation_is_over_rows_and_time():
    torch.manual_seed(3)
    net, tokens = network(batchnorm=True), torch.randint(8, (4, 6))
    seen = []
    net.norms[0].register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    net(tokens)
    x, y = seen[0]
    assert x.shape == (24, 7)
    torch.testing.assert_close(y.mean(0), torch.zeros(7), atol=1e-5, rtol=0)


def test_characters_start_from_the_published_law():
    torch.manual_seed(0)
    net = CharLSTM()
    for layer, width in zip(net.layers, (85, 128), strict=True):
        w, u, bias, second = layer.parameters()
        for matrix in (w, u):
            assert matrix.std().item() == pytest.approx((width + 128) ** -0.5, rel=0.02)
        gates = bias.view(4, 128)
        assert (gates[1] == 1).all() and (gates[[0, 2, 3]] == 0).all()
        assert (second == 0).all() and not second.requires_grad
    words = nn.utils.parameters_to_vector(WordLSTM(50, 30, bound=0.1).parameters())
    assert 0.099 < words.abs().max() <= 0.1


def plain(path, epochs, parts=1):
    """Train by hand: SGD over the pieces of the text, the state carried on."""
    net, loaded = network(), data(path)
    loaded.setup()
    optimizer = sgd(net.parameters())
    for _ in range(epochs):
        net.forget(True)
        for tokens, following in loaded.train_dataloader():
            optimizer.zero_grad()
            cross_entropy(net(tokens), following).backward()
            optimizer.step()
    return net


def fit(folder, path, *callbacks, optimizer=sgd, ckpt_path=None, **settings):
    torch.manual_seed(2)
    build = settings.pop("build", network)
    parts = settings.pop("minibatches", 1)
    module = LanguageModel(build, optimizer, minibatches=parts)
    options = {"max_epochs": 2, "callbacks": list(callbacks)} | settings
    fitting = trainer(folder, **options)
    loaded = data(path, minibatches=parts)
    fitting.fit(module, datamodule=loaded, ckpt_path=ckpt_path)
    return module, fitting


def test_training_is_that_of_a_plain_loop(tmp_path, text):
    module, _ = fit(tmp_path, text, val_check_interval=5)
    for p, q in zip(
        module.network.parameters(), plain(text, 2).parameters(), strict=True
    ):
        torch.testing.assert_close(p, q)


def test_evaluations_read_on_or_start_where_the_batch_does(tmp_path, text):
    starts = []

    def recording():
        net = network()
        net.layers[0].register_forward_pre_hook(
            lambda layer, args: starts.append(args[1]) if layer.training else None
        )
        return net

    twice = partial(Twice, lr=0.0)
    for parts in (1, 2):
        starts.clear()
        settings = {"max_steps": 3, "limit_val_batches": 0, "build": recording}
        fit(tmp_path, text, optimizer=twice, minibatches=parts, **settings)
        assert starts[0] is None and len(starts) == 6
        own = [None if s is None else s[0] for s in starts]
        if parts == 1:  # pairs of evaluations see the same tokens
            assert own[1] is None and torch.equal(own[2], own[3])
            assert not torch.equal(own[2], own[4])
        else:
            flat = [s.flatten() for s in own[1:]]
            assert all(not torch.equal(a, b) for a, b in zip(flat, flat[1:], strict=0))


def test_the_perplexity_is_the_exponential_of_the_mean_loss(tmp_path, text):
    adam = partial(Adam, lr=0.02)
    module, fitting = fit(tmp_path, text, optimizer=adam, max_epochs=8)
    metrics = fitting.callback_metrics
    loaded = data(text)
    loaded.setup()
    net = module.network.eval()
    net.forget(False)
    with torch.no_grad():
        losses = [cross_entropy(net(x), y) for x, y in loaded.val_dataloader()]
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(metrics["val/loss"], mean)
    torch.testing.assert_close(metrics["val/perplexity"], mean.exp())
    # Guessing costs ln 8 = 2.08 nats, knowing the law 0.50
    assert 0.4 < mean < 1.2
    net.forget(False)
    [result] = fitting.test(module, datamodule=loaded, verbose=False)
    expected = torch.tensor(result["test/loss"]).exp().item()
    assert result["test/perplexity"] == pytest.approx(expected)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, text):
    build = partial(network, dropout=0.3, batchnorm=True)

    def run(folder, **settings):
        parts = BatchNormEstimate(), Checkpoints(str(folder), every_n_steps=3)
        return fit(folder, text, *parts, build=build, **settings)[0]

    whole = run(tmp_path / "whole").state_dict()
    folder = tmp_path / "parts"
    run(folder, max_epochs=-1, max_steps=20 + 7)
    module = run(folder, ckpt_path=str(folder / "last.ckpt"))
    assert all(torch.equal(whole[n], v) for n, v in module.state_dict().items())


def test_the_loss_is_a_function_of_the_weights_in_evaluation_mode(text):
    module, loaded = LanguageModel(network, sgd).eval(), data(text)
    loaded.setup()
    first, second, *_ = loaded.train_dataloader()
    expected = cross_entropy(network().eval()(second[0]), second[1])
    for batch in (first, second):
        loss = module.loss(batch)
    torch.testing.assert_close(loss, expected)
    assert not module.stream.states


def test_what_does_not_fit_is_refused(tmp_path, text):
    small = partial(StreamLSTM, 7, 3, 4)
    with pytest.raises(UserError, match="knows 7 tokens, the text has 8"):
        fit(tmp_path, text, build=small)
    with pytest.raises(UserError, match="needs a network of tokens"):
        module = LanguageModel(lambda: nn.Linear(2, 2), sgd)
        trainer(tmp_path).fit(module, datamodule=Digits())
    for arguments, name in (
        ({"vocabulary": 0}, "vocabulary"),
        ({"layers": 0}, "layers"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must"):
            StreamLSTM(**({"vocabulary": 3, "embedding": 3, "hidden": 3} | arguments))
    with pytest.raises(ValueError, match="^bound must"):
        WordLSTM(5, 3, bound=-1)
    for arguments, name in (
        ({"vocabulary": 0}, "vocabulary"),
        ({"hidden": 0}, "hidden"),
        ({"std": -1.0}, "std"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must"):
            SmallCharLSTM(**arguments)
    assert issubclass(LanguageModel, Classifier)


def test_a_text_can_be_learned_from_the_command_line(cli, text, tmp_path):  # noqa: F811
    config = {
        "trainer": {
            "max_steps": 4,
            "max_epochs": -1,
            "accelerator": "cpu",
            "gradient_clip_val": 5.0,
            "gradient_clip_algorithm": "value",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "data": {
            "class_path": "datamodules.Text",
            "init_args": {"path": text, "batch_size": 4, "window": 9},
        },
        "model": {
            "class_path": "modules.LanguageModel",
            "init_args": {
                "network": {
                    "class_path": "modules.CharLSTM",
                    "init_args": {"vocabulary": 8, "embedding": 6, "hidden": 7},
                },
                "optimizer": {
                    "class_path": "torch.optim.Adam",
                    "init_args": {"lr": 0.002},
                },
            },
        },
    }
    (tmp_path / "char.yaml").write_text(yaml.safe_dump(config))
    result = cli("fit", "--config", tmp_path / "char.yaml")
    assert result.code == 0, result.err
    assert "test/perplexity" in result.out
