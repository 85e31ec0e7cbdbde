"""Networks small enough for their whole Hessian."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_ecd.checks import at_least, one_of
from modules.recurrent import TokenNetwork

#: What pixels are pooled together: half an image apart, or side by side.
Pool = Literal["folded", "neighbours"]


class FoldedPool(nn.Module):
    """Maxima over pixels half an image apart.

    Row r is pooled with row r + H/2 and column c with c + W/2, which halves both
    sides, as pooling of neighbours does.

    Shape:
        (B, C, H, W), even sides -> (B, C, H/2, W/2)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima."""
        height, width = x.shape[2] // 2, x.shape[3] // 2
        return x.view(*x.shape[:2], 2, height, 2, width).amax((2, 4))


class SmallLeNet(nn.Sequential):
    """The LeNet whose Hessian spectrum Entropy-SGD's paper shows: 47,658 parameters.

    Two 5x5 convolutions with ReLU and pooling, a hidden layer of 128.

    Args:
        pool: "folded", as in the program behind the paper's figure, which reshapes
            the image such that row r is pooled with row r + H/2 and column c with
            c + W/2; "neighbours": the usual pooling of 2x2 pixels.
        std: Standard deviation of the normal distribution that all weights and biases
            start from, at least 0.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, 1, 28, 28) -> (B, outputs)

    Note:
        The original convolves, with flipped kernels, where torch correlates. The
        network and the law of its weights are the same, but weights of one cannot be
        copied to the other unflipped.

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838, figure 1.
    """

    def __init__(
        self,
        pool: Pool = "folded",
        std: float = 0.1,
        outputs: int = 10,
    ):
        one_of(get_args(Pool), pool=pool)
        at_least(0, std=std)

        def pooling() -> nn.Module:
            return FoldedPool() if pool == "folded" else nn.MaxPool2d(2)

        super().__init__(
            nn.Conv2d(1, 10, 5),
            nn.ReLU(),
            pooling(),
            nn.Conv2d(10, 20, 5),
            nn.ReLU(),
            pooling(),
            nn.Flatten(),
            nn.Linear(320, 128),
            nn.ReLU(),
            nn.Linear(128, outputs),
        )
        for p in self.parameters():
            nn.init.normal_(p, 0.0, std)


class SmallMnistFC(nn.Sequential):
    """One hidden layer of 64 for the Hessian spectrum: 50,890 parameters.

    The authors' development program has 32 on images of 14x14 pixels instead
    (``inputs=196, width=32``, 6,634 parameters).

    Args:
        inputs: Pixels of an image times its colours.
        width: Of the hidden layer.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, ...) with `inputs` values in an image -> (B, outputs)

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838, appendix.
    """

    def __init__(self, inputs: int = 784, width: int = 64, outputs: int = 10):
        at_least(1, width=width)
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Linear(width, outputs),
        )


class SmallCharLSTM(TokenNetwork):
    """An LSTM layer of 48 for the Hessian spectrum: 32,640 parameters.

    Reads characters as unit vectors and starts every batch from a state that is
    learned too. The paper trains it by Adam on 256 lines of 32 characters.

    Args:
        vocabulary: Number of different characters.
        hidden: Width of the layer.
        std: Standard deviation of the normal distribution that all parameters start
            from, at least 0.

    Shape:
        characters (B, T), int64 -> logits (B, vocabulary, T)

    Note:
        Written out instead of torch's LSTM, which has no second derivative on a GPU.
        The authors' development program departs from an LSTM: its new cell is
        o f + i tanh(..) without the cell before, and gates are sigmoids of twice the
        argument.

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838, appendix.
    """

    def __init__(self, vocabulary: int = 96, hidden: int = 48, std: float = 0.1):
        at_least(1, hidden=hidden)
        at_least(0, std=std)
        super().__init__(vocabulary)
        self.start = nn.Parameter(torch.empty(2, 1, hidden))
        self.read = nn.Embedding(vocabulary, 4 * hidden)  # of unit vectors, a product
        self.gates = nn.Linear(hidden, 4 * hidden)
        self.head = nn.Linear(hidden, vocabulary)
        for p in self.parameters():
            nn.init.normal_(p, 0.0, std)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of the characters that follow."""
        output, cell = self.start.expand(-1, len(characters), -1)
        logits = []
        for x in self.read(characters).unbind(1):
            i, f, o, change = (x + self.gates(output)).chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * change.tanh()
            output = o.sigmoid() * cell.tanh()
            logits.append(self.head(output))
        return torch.stack(logits, -1)
