"""Recurrent networks that predict the next character or word of a text."""

from typing import Any, cast

from torch import Tensor, nn

from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError
from modules.classifier import Classifier
from modules.layers import drop

#: Of every layer: output and cell, (1, B, hidden) each.
State = list[tuple[Tensor, Tensor]]


class TokenNetwork(nn.Module):
    """A network that predicts the token after each of a text.

    Args:
        vocabulary: Number of different tokens, at least 1.

    Shape:
        tokens (B, T), int64 -> logits (B, vocabulary, T)
    """

    def __init__(self, vocabulary: int):
        at_least(1, vocabulary=vocabulary)
        super().__init__()
        self.vocabulary = vocabulary
        #: Where training and evaluation, True and False, go on; none: from the start.
        self.states: dict[bool, State] = {}

    def forget(self, training: bool) -> None:
        """Start anew with the next batch in training or in evaluation."""
        self.states.pop(training, None)


class StreamLSTM(TokenNetwork):
    """LSTM layers that go on where the batch before ended.

    Row b of a batch continues row b of the one before it: the state is carried on,
    without its gradient, in training and in evaluation apart. A batch of another
    size, and the one after `forget`, start from zero.

    Args:
        vocabulary: Number of different tokens.
        embedding: Width of their vectors.
        hidden: Width of every layer.
        layers: Number of layers, at least 1.
        dropout: Probability of dropping an input of a layer or of the head, in [0, 1).
        batchnorm: Normalise the outputs of every layer, over rows and time.

    Shape:
        tokens (B, T), int64 -> logits (B, vocabulary, T)
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        hidden: int,
        layers: int = 2,
        dropout: float = 0.0,
        batchnorm: bool = False,
    ):
        at_least(1, embedding=embedding, hidden=hidden, layers=layers)
        super().__init__(vocabulary)
        self.embedding = nn.Embedding(vocabulary, embedding)
        inputs = [embedding] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(
            nn.LSTM(size, hidden, batch_first=True) for size in inputs
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(hidden) if batchnorm else nn.Identity() for _ in inputs
        )
        self.dropout = nn.Sequential(*drop("dropout", dropout))
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the tokens that follow."""
        x = self.embedding(tokens)
        before = self.states.get(self.training)
        if before is not None and before[0][0].shape[1] != len(tokens):
            before = None
        after: State = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            state = None
            if before is not None:
                state = before[i][0].to(x), before[i][1].to(x)
            x, (output, cell) = layer(self.dropout(x), state)
            after.append((output.detach(), cell.detach()))
            x = norm(x.flatten(0, 1)).view_as(x)
        self.states[self.training] = after
        return self.head(self.dropout(x)).transpose(1, 2)


class WordLSTM(StreamLSTM):
    """The "large" network for the Penn Treebank: 66,034,000 parameters.

    The "small" one: ``width=200, dropout=0, bound=0.1``, 4,653,200 parameters.

    Args:
        vocabulary: Number of different words.
        width: Of vectors and layers.
        dropout: See `StreamLSTM`.
        bound: All weights and biases start uniform in [-bound, bound].

    Shape:
        words (B, T), int64 -> logits (B, vocabulary, T)

    Reference:
        W. Zaremba, I. Sutskever, O. Vinyals, "Recurrent neural network
        regularization", arXiv 1409.2329.
    """

    def __init__(
        self,
        vocabulary: int = 10000,
        width: int = 1500,
        dropout: float = 0.65,
        bound: float = 0.04,
    ):
        at_least(0, bound=bound)
        super().__init__(vocabulary, width, width, dropout=dropout)
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)


class CharLSTM(StreamLSTM):
    r"""Two LSTM layers with BatchNorm for characters.

    With the defaults 260,282 trainable parameters. A layer of D inputs and H units
    starts from normal weights of the standard deviation :math:`1/\sqrt{D + H}`, forget
    biases of 1 and other biases of 0.

    Args:
        vocabulary: Number of different characters.
        embedding: Width of their vectors.
        hidden: Width of the layers.

    Shape:
        characters (B, T), int64 -> logits (B, vocabulary, T)

    Note:
        torch's LSTM adds two biases to every gate. The original has one: the other is
        0 and frozen.

    Reference:
        A. Karpathy, J. Johnson, L. Fei-Fei, "Visualizing and understanding recurrent
        networks", arXiv 1506.02078; P. Chaudhari et al., "Entropy-SGD: biasing
        gradient descent into wide valleys", ICLR 2017, arXiv 1611.01838.
    """

    def __init__(self, vocabulary: int = 87, embedding: int = 85, hidden: int = 128):
        super().__init__(vocabulary, embedding, hidden, batchnorm=True)
        for layer in self.layers:
            std = (cast(nn.LSTM, layer).input_size + hidden) ** -0.5
            inner, outer, bias, second_bias = layer.parameters()
            nn.init.normal_(inner, 0.0, std)
            nn.init.normal_(outer, 0.0, std)
            nn.init.zeros_(bias)
            nn.init.ones_(bias.detach()[hidden : 2 * hidden])  # gates: i, f, g, o
            nn.init.zeros_(second_bias).requires_grad_(False)


class LanguageModel(Classifier):
    """Cross-entropy in nats per token, and perplexity, of a text.

    The state starts from zero with every epoch, validation and test, and travels in
    checkpoints. Successive evaluations of the loss within a step read successive
    pieces of the text; if they see the same one (``minibatches=1``), each starts from
    the state at its beginning. In evaluation mode `loss` starts every batch from
    zero: what inspects it, such as its curvature, sees a function of the weights.

    Args:
        network: See `Classifier`; builds a `TokenNetwork`.
        optimizer: See `Task`.
        minibatches: See `Task`.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`.
        channels_last: See `Classifier`.
    """

    metric_names = (*Classifier.metric_names, "val/perplexity", "test/perplexity")  # type: ignore[assignment]

    _start: State | None = None  # of the batch of the loader

    @property
    def stream(self) -> TokenNetwork:
        """The network."""
        return cast(TokenNetwork, self.network)

    def setup(self, stage: str) -> None:
        """Refuse a network with fewer tokens than the text has."""
        if not isinstance(self.network, TokenNetwork):
            raise UserError(
                "LanguageModel needs a network of tokens, such as modules.CharLSTM: "
                "set model.network"
            )
        tokens = getattr(getattr(self.trainer, "datamodule", None), "classes", 0)
        if self.stream.vocabulary < tokens:
            raise UserError(
                f"the network knows {self.stream.vocabulary} tokens, the text has "
                f"{tokens}: set model.network.vocabulary to at least {tokens}"
            )

    def loss(self, batch: Any) -> Tensor:
        """Return the mean cross-entropy of (tokens, those that follow)."""
        if self.training:
            if self.minibatches == 1:
                self._put(self._start)
            return super().loss(batch)
        self.stream.forget(False)
        try:
            return super().loss(batch)
        finally:
            self.stream.forget(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start an epoch anew; remember the state at the beginning of a batch."""
        if batch_idx == 0:
            self.stream.forget(True)
        self._start = self.stream.states.get(True)

    def on_validation_epoch_start(self) -> None:
        """Start anew."""
        self.stream.forget(False)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity; leave no state behind."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Start anew."""
        self.stream.forget(False)

    def on_test_epoch_end(self) -> None:
        """Log the perplexity; leave no state behind."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        mean = self.means.of(f"{stage}/loss").compute()
        self.log(f"{stage}/perplexity", mean.exp())
        self.stream.forget(False)

    def _put(self, state: State | None) -> None:
        self.stream.forget(True)
        if state is not None:
            self.stream.states[True] = state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state within the text."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["recurrent_state"] = self.stream.states.get(True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        super().on_load_checkpoint(checkpoint)
        self._put(checkpoint.get("recurrent_state"))
