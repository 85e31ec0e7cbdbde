"""Batches of tensors that already lie in the memory of the training device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.randomness import generator, subsets

Order = Literal["shuffled", "sequential", "replacement", "independent"]
#: What becomes of a last part that is not full: it stays short, or is left out.
Last = Literal["short", "drop"]
Augment = Callable[[Tensor, torch.Generator], Tensor]

ORDER_STREAM, AUGMENT_STREAM, SPLIT_STREAM = range(3)


class DataModule(pl.LightningDataModule):
    """Data in memory: where the trainer wants them, and whose share is taken."""

    @property
    def device(self) -> torch.device:
        """That of the training; the CPU without a trainer."""
        trainer = self.trainer
        return torch.device("cpu") if trainer is None else trainer.strategy.root_device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def overfits(self) -> bool:
        """Whether few batches are repeated: Lightning announces a fixed order then."""
        return getattr(self.trainer, "overfit_batches", 0) > 0


class Loader:
    """Iterates over tensors in memory, batch by batch, in a reproducible order.

    The order of an epoch is a function of (seed, epoch) alone, drawn on the CPU
    whatever the device, and the loader's place in it is two numbers. Lightning sets
    the epoch and saves and restores the state, so a run that stops after batch i
    continues with batch i + 1, bit for bit.

    A loader batch holds `minibatches` chunks of `batch_size` samples for a rank; the
    chunks k of all ranks together are chunk k of the batch that one rank with
    ``world_size * batch_size`` would see. Every rank has the same number of batches.

    Args:
        tensors: What to iterate over, all of the same length; a batch is a tuple.
        indices: The samples of this split; None: all.
        batch_size: Samples in a mini-batch of one rank.
        minibatches: Mini-batches in a loader batch.
        order: Of an epoch: "shuffled", "sequential", as many independent draws with
            "replacement" as the split has samples, or "independent" batches, each of
            distinct samples.
        last: What becomes of an epoch's last, incomplete batch: "short" keeps what is
            a multiple of ``world_size * minibatches``, "drop" nothing; "even" cuts
            the epoch into batches of nearly equal size, leaving no sample out (for
            evaluation; it needs ``minibatches=1``).
        prepare: Turns the first tensor of a batch into what the network sees; may
            work in place.
        augment: ``augment(batch, generator)`` changes the first tensor of a batch
            before `prepare`; the CPU generator is a function of
            (seed, epoch, batch, rank).
        steps_per_epoch: Batches in an epoch of "independent" ones; None: what fits.
        seed: Of order and augmentation.
        rank: This process.
        world_size: The number of processes.
    """

    batch_sampler = None  # Lightning reads it as soon as there is a sampler

    def __init__(
        self,
        tensors: Sequence[Tensor],
        indices: Tensor | None = None,
        *,
        batch_size: int,
        minibatches: int = 1,
        order: Order = "shuffled",
        last: Last | Literal["even"] = "short",
        prepare: Callable[[Tensor], Tensor] | None = None,
        augment: Augment | None = None,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        at_least(1, batch_size=batch_size)
        at_least(1, minibatches=minibatches)
        one_of(get_args(Order), order=order)
        at_least(1, steps_per_epoch=steps_per_epoch)
        if steps_per_epoch is not None and order != "independent":
            raise ValueError(f"steps_per_epoch must be None with order={order!r}")
        one_of((*get_args(Last), "even"), last=last)
        if last == "even" and minibatches != 1:
            raise ValueError(
                f"minibatches must be 1 with last='even', got {minibatches}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size - 1}], got {rank}")
        if len({len(tensor) for tensor in tensors}) != 1:
            raise ValueError("tensors must have one length in common")
        self.tensors = tuple(tensors)
        self.indices = torch.arange(len(tensors[0])) if indices is None else indices
        self.batch_size, self.minibatches = batch_size, minibatches
        self.order, self.last = order, last
        self.prepare, self.augment = prepare, augment
        self.steps_per_epoch = steps_per_epoch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.position = 0
        self._restored: dict[str, Any] | None = None
        if len(self) == 0:
            raise ValueError(
                f"batch_size ({batch_size}) x minibatches ({minibatches}) x ranks "
                f"({world_size}) leaves no batch in {len(self.indices)} samples"
            )

    def __len__(self) -> int:
        samples, full = len(self.indices), self._full
        if self.order == "independent":
            return 0 if full > samples else self.steps_per_epoch or samples // full
        if self.last == "even":
            return min(-(-samples // full), samples // self.world_size)
        return samples // full + (self._short > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # Lightning does not exhaust a loader whose length it knows: nothing may
        # stand after the last yield, and the position moves before it.
        start = self._resumed_position()
        order = self.epoch_order()
        for batch in range(start, len(self)):
            tensors = self._batch(order, batch)
            self.position = batch + 1
            yield tensors

    @property
    def samples(self) -> int:
        """Number of samples that an epoch draws from."""
        return len(self.indices)

    @property
    def sampler(self) -> "Loader":
        """The loader itself: Lightning calls its sampler's `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than the present starts at its beginning."""
        if epoch != self.epoch:
            self.position, self._restored = 0, None
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of its batches already yielded."""
        state = {"epoch": self.epoch, "position": self.position}
        return state | {"batches": len(self), "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a saved epoch at the next iteration, unless `set_epoch` moves on."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._restored = dict(state)

    def epoch_order(self) -> Tensor:
        """Return the samples of the present epoch in order, on the data's device."""
        samples = len(self.indices)
        draws = generator(self.seed, ORDER_STREAM, self.epoch)
        order = self.indices.cpu()
        if self.order == "shuffled":
            order = order[torch.randperm(samples, generator=draws)]
        elif self.order == "replacement":
            order = order[torch.randint(samples, (samples,), generator=draws)]
        elif self.order == "independent":
            stream = (self.seed, ORDER_STREAM, self.epoch)
            order = order[subsets(len(self), self._full, samples, *stream).flatten()]
        return order.to(self.tensors[0].device)

    @property
    def _full(self) -> int:
        """Samples in a complete batch of all ranks together."""
        return self.batch_size * self.minibatches * self.world_size

    @property
    def _short(self) -> int:
        """Samples in the last, incomplete batch of all ranks together."""
        if self.last == "drop":
            return 0
        rest = len(self.indices) % self._full
        return rest - rest % (self.minibatches * self.world_size)

    def _resumed_position(self) -> int:
        """Return how many batches to skip; refuse an order that has changed."""
        restored, self._restored = self._restored, None
        if restored is None:
            return 0
        for name in ("batches", "seed"):
            now = self.state_dict()[name]
            if restored[name] != now:
                raise UserError(
                    f"the checkpoint stopped within an epoch with {name} = "
                    f"{restored[name]}, but now {name} = {now}: resume with the same "
                    "data settings, or from a checkpoint of an epoch's end"
                )
        return restored["position"]

    def _samples(self, order: Tensor, batch: int) -> Tensor:
        """Return this rank's part of a batch."""
        if self.last == "even":
            parts = len(self) * self.world_size
            part, samples = batch * self.world_size + self.rank, len(order)
            return order[part * samples // parts : (part + 1) * samples // parts]
        first = batch * self._full
        size = min(self._full, len(order) - first)
        if size < self._full:
            size = self._short
        chunks = order[first : first + size].view(self.minibatches, self.world_size, -1)
        return chunks[:, self.rank].reshape(-1)

    def _batch(self, order: Tensor, batch: int) -> tuple[Tensor, ...]:
        samples = self._samples(order, batch)
        # index_select is several times faster than tensor[samples]
        first, *others = (tensor.index_select(0, samples) for tensor in self.tensors)
        if self.augment is not None:
            counters = (AUGMENT_STREAM, self.epoch, batch, self.rank)
            first = self.augment(first, generator(self.seed, *counters))
        if self.prepare is not None:
            first = self.prepare(first)
        return first, *others
