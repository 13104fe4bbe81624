"""Batches in an order that a run can continue at any of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler
from torch_geometric.data import Batch

from nsm.data.triples import TripleDataset


class EpochSampler(Sampler[int]):
    """Every position once, in an order that seed and epoch alone decide, so that a continued run repeats it."""

    def __init__(self, size: int, *, seed: int, epoch: int = 0) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch
        self.start = 0
        """Positions that the next pass leaves out, because they came before it was interrupted."""

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.size)[start:].tolist()


class TrainLoader(DataLoader):
    """Batches of a training set, shuffled; Lightning saves how many of an epoch were seen, and continues after them.

    Args:
        dataset: what is learned from.
        batch_size: graphs in a batch.
        seed, epoch: decide the order.
        settings: further ones of PyTorch's loader.
    """

    def __init__(self, dataset: TripleDataset, *, batch_size: int, seed: int, epoch: int, **settings: Any) -> None:
        self._order = EpochSampler(len(dataset), seed=seed, epoch=epoch)
        self._seen = 0
        super().__init__(dataset, batch_size=batch_size, sampler=self._order, collate_fn=as_is, **settings)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator is what callers need of PyTorch's
        assert self.batch_size is not None
        self._seen = self._order.start // self.batch_size
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch were seen."""
        return {"batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass begin after them."""
        assert self.batch_size is not None
        self._order.start = state["batches"] * self.batch_size


def as_is(batch: Batch) -> Batch:
    """The dataset has already made the batch."""
    return batch
