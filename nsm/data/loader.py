"""Batches in an order that a run can continue at any of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler
from torch_geometric.data import Batch

from nsm.data.triples import TripleDataset


class EpochSampler(Sampler[int]):
    """Every position once, in an order that seed and epoch alone decide, so that a continued run repeats it.

    Args:
        size: number of positions.
        batch_size: of all devices together.
        seed, epoch: decide the order.
        rank, world_size: which of how many devices this is. Each takes its part of every batch; a last batch of fewer
            samples than devices is left out.
    """

    def __init__(
        self, size: int, *, batch_size: int, seed: int, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size, self.seed, self.epoch, self.rank, self.world_size = batch_size, seed, epoch, rank, world_size
        rest = size % batch_size
        self.size, self.used = size, size - rest if rest < world_size else size
        self.start = 0
        """Positions that the next pass leaves out, because they came before it was interrupted."""

    def __len__(self) -> int:
        return sum(len(self._part(range(first, last))) for first, last in self._bounds(0))

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size).tolist()
        for first, last in self._bounds(start):
            yield from self._part(order[first:last])

    def _bounds(self, start: int) -> Iterator[tuple[int, int]]:
        """Where each batch begins and ends."""
        for first in range(start, self.used, self.batch_size):
            yield first, min(first + self.batch_size, self.used)

    def _part(self, batch: Sequence[int]) -> Sequence[int]:
        """This device's."""
        bounds = [len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return batch[bounds[0] : bounds[1]]


class TrainLoader(DataLoader):
    """Batches of a training set, shuffled; Lightning saves how many of an epoch were seen, and continues after them.

    Args:
        dataset: what is learned from.
        batch_size: graphs in a batch, of all devices together.
        seed, epoch, rank, world_size: see :class:`EpochSampler`.
        settings: further ones of PyTorch's loader.
    """

    def __init__(
        self,
        dataset: TripleDataset,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        **settings: Any,
    ) -> None:
        order = EpochSampler(
            len(dataset), batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size
        )
        self._order, self._seen = order, 0
        super().__init__(dataset, batch_size=batch_size // world_size, sampler=order, collate_fn=as_is, **settings)

    def __iter__(self) -> Any:  # a generator of batches, where PyTorch declares an iterator of its own class
        self._seen = self._order.start // self._order.batch_size
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch were seen."""
        return {"batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass begin after them."""
        self._order.start = state["batches"] * self._order.batch_size


def as_is(batch: Batch) -> Batch:
    """The dataset has already made the batch."""
    return batch
