"""A text of the user's, cut into streams that a recurrent network reads on."""

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from datamodules.memory import DataModule, Loader
from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import UserError

Unit = Literal["characters", "words"]


class Text(DataModule):
    """Characters or words of a text file and, to be predicted, those that follow.

    A part of the text is cut into as many streams of equal length as a batch has
    rows; batches are successive pieces of them, in order, so that row b of a batch
    continues row b of the one before. Of a loader batch with several mini-batches the
    k-th is the k-th next piece. What does not fill a batch at the end is left out.

    Args:
        path: Of the text, in UTF-8.
        val_path: Of a text for validation; None: a tenth of `path`.
        test_path: Of a text for testing; None: the last tenth of `path`.
        unit: "characters", or "words" between blanks; then the end of a line is a
            word too.
        batch_size: Streams of one rank.
        window: Tokens of a stream in a batch.
        eval_batch_size: Streams in validation and test; with 1 every token is
            predicted from all those before it.
        minibatches: Mini-batches in a loader batch, which is that many times larger.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        test_path: str | None = None,
        unit: Unit = "characters",
        batch_size: int = 128,
        window: int = 50,
        eval_batch_size: int = 1,
        minibatches: int = 1,
    ) -> None:
        super().__init__()
        one_of(get_args(Unit), unit=unit)
        at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        at_least(1, window=window, minibatches=minibatches)
        self.path, self.val_path, self.test_path = path, val_path, test_path
        self.unit, self.window, self.minibatches = unit, window, minibatches
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.vocabulary: dict[str, int] = {}
        self._parts: dict[str, Tensor] = {}
        self.save_hyperparameters(ignore=["minibatches"])

    @property
    def classes(self) -> int:
        """Number of different tokens in all parts together."""
        return len(self.vocabulary)

    def setup(self, stage: str | None = None) -> None:
        """Read the text, once."""
        if self._parts:
            return
        parts = {"train": self._tokens(self.path)}
        # From the end: the order in the text is training, validation, test.
        rest, tenth = parts["train"], len(parts["train"]) // 10
        for name, path in (("test", self.test_path), ("val", self.val_path)):
            if path is not None:
                parts[name] = self._tokens(path)
            else:
                end = len(rest) - tenth
                rest, parts[name] = rest[:end], rest[end:]
        parts["train"] = rest
        found = sorted(set().union(*parts.values()))
        self.vocabulary = {token: i for i, token in enumerate(found)}
        self._parts = {
            name: torch.tensor([self.vocabulary[token] for token in tokens])
            for name, tokens in parts.items()
        }

    def train_dataloader(self) -> Loader:
        """Return the loader of the text that is learned."""
        return self._loader("train", self.batch_size, self.minibatches)

    def val_dataloader(self) -> Loader:
        """Return the loader of the text for validation."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> Loader:
        """Return the loader of the text for testing."""
        return self._loader("test", self.eval_batch_size)

    def _tokens(self, path: str) -> list[str]:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"the text {path} cannot be read ({error}): name a text file in UTF-8"
            ) from error
        if self.unit == "characters":
            return list(text)
        return text.replace("\n", " <eos> ").split()

    def _loader(self, part: str, batch_size: int, minibatches: int = 1) -> Loader:
        tokens, streams = self._parts[part], batch_size * self.world_size
        batch = streams * self.window * minibatches
        pieces = (len(tokens) - 1) // batch * minibatches
        if pieces < 1:
            raise UserError(
                f"the {len(tokens)} tokens for {part} do not fill a batch of {streams} "
                f"streams x a window of {self.window} x {minibatches} minibatches: set "
                "data.batch_size, data.eval_batch_size or data.window to less"
            )
        length = pieces * self.window

        def cut(first: int) -> Tensor:
            """Return successive pieces, of each its streams, (rows, window)."""
            chosen = tokens[first : first + streams * length].to(self.device)
            return chosen.view(streams, pieces, -1).transpose(0, 1).flatten(0, 1)

        return Loader(
            (cut(0), cut(1)),
            batch_size=batch_size,
            minibatches=minibatches,
            order="sequential",
            last="drop",
            rank=self.rank,
            world_size=self.world_size,
        )
