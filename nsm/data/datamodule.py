"""The one LightningDataModule: generate or load, split, control, batch; a domain adds what is true of it."""

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from nsm.config import DomainConfig
from nsm.data import cache, shortcuts
from nsm.data.loader import TrainLoader, as_is
from nsm.data.triples import TripleDataset, node_names

log = logging.getLogger(__name__)
LOADER_FIELDS = ("_target_", "batch_size", "eval_batch_size", "num_workers", "pin_memory", "cache_dir")


class Grouping(NamedTuple):
    """One way to divide a set's samples."""

    codes: Tensor
    """[G] group of each sample, a position in ``names``."""
    names: tuple[str, ...]


class Scorer(NamedTuple):
    """What a trained model says of samples, as log-odds of y = 1 or anything else that grows with them."""

    samples: Callable[[Batch], Tensor]
    """Scores [G] of a batch of samples, on the CPU."""
    entities: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """Scores of every entity as the other end of questions: [Q] the given end, [Q] the relation and [Q] whether the
    object is asked for, to [Q, N]; where a model has a shorter way to them than sample by sample."""


class TripleDataModule(LightningDataModule, ABC):
    """Samples of one domain with a known truth.

    After :meth:`prepare_data` and :meth:`setup`, ``train_set``, ``val_set`` and ``test_set`` are PyG datasets of such
    samples, and ``extra_sets`` holds further test sets by name (an intervention, longer plans, candidates to rank).

    A domain sets the class attributes, and implements :meth:`generate`; it overrides :attr:`ceilings`,
    :meth:`local_features`, :meth:`metrics` and :meth:`breakdowns` where it has more to say.
    """

    name: str
    version: ClassVar[int]
    """Of the generator: raise it whenever the same configuration would give other bytes; old caches are left behind."""
    config_class: ClassVar[type[DomainConfig]]
    instance_noun: ClassVar[str] = "instances"
    """What the samples were drawn from."""
    question: ClassVar[str] = "{subject} {relation} {object}"
    """How a question about a pair of nodes reads."""
    own_thresholds: ClassVar[bool] = False
    """Whether :meth:`answers` takes thresholds from validation instead of P(y = 1) > .5."""
    relations: tuple[str, ...]
    entity_types: tuple[str, ...]
    num_levels: int
    """Levels of abstraction that ``level`` counts, from 1."""
    num_entities: int = 0
    """Entities that have a number of their own, the same in every split; 0 where a split may bring new ones."""
    known_triples: Tensor | None = None
    """The true training triples of those entities: [3, E] subject, relation, object."""

    train_set: TripleDataset
    val_set: TripleDataset
    test_set: TripleDataset
    extra_sets: dict[str, TripleDataset]
    shortcuts: dict[str, float]
    """Test accuracy of models too cheap to understand anything, by name."""
    majority: float
    """Test accuracy of always answering the class that is more frequent in training."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = self.config_class(
            _target_=f"{type(self).__module__}.{type(self).__qualname__}",
            **{key: value for key, value in settings.items() if key != "_target_"},
        )
        self._content: dict[str, Any] | None = None

    @abstractmethod
    def generate(self, rng: np.random.Generator) -> dict[str, TripleDataset]:
        """Make the data: ``train``, ``val``, ``test`` (70/15/15, no instance shared), and further test sets by name."""

    @property
    def ceilings(self) -> dict[str, float | None]:
        """Expected accuracy of the best rule there is, on ``test`` and on each extra set, where it is known.

        On one finite set a model may by luck score a little above it.
        """
        return {"test": None}

    @property
    def ceiling(self) -> float | None:
        """Expected test accuracy of the best rule there is, where it is known; None under a control."""
        return self.ceilings["test"] if self.config.control == "none" else None

    @property
    def notes(self) -> dict[str, str]:
        """What is to be said of test figures, by name."""
        return {}

    def local_features(self, dataset: TripleDataset) -> dict[str, np.ndarray]:
        """Domain-specific feature tables [G, F] by name, each the input of one more shortcut model."""
        return {}

    def metrics(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """The domain's own test figures from P(y = 1) of every sample, in order, of ``test`` and each extra set."""
        return {}

    def evaluate(self, scorer: Scorer, folder: Path) -> dict[str, float]:
        """Further test figures that need the model itself.

        Args:
            folder: of the run, for what is worth keeping.
        """
        return {}

    def answers(self, dataset: TripleDataset, probability: Tensor, scorer: Scorer) -> Tensor:
        """Which samples of one of the domain's sets are taken to be of class 1: [G]."""
        return probability > 0.5

    def names(self, dataset: TripleDataset, position: int) -> list[str]:
        """What a reader knows the nodes of a sample as."""
        return node_names(dataset[position], self.entity_types)

    def breakdowns(self, dataset: TripleDataset) -> dict[str, Grouping]:
        """Ways to divide the samples of one of the domain's sets, by name: where does the model fail?"""
        if "query_type" not in dataset.columns:
            return {}
        return {"relation": Grouping(dataset.column("query_type"), self.relations)}

    def prepare_data(self) -> None:
        """Generate the data and audit its shortcuts, unless a sound copy is cached, or they are laid out already."""
        if self._content is not None or hasattr(self, "train_set"):
            return
        self._content = cache.load_or_make(Path(self.config.cache_dir), self.name, self._description(), self._make)

    def setup(self, stage: str | None = None) -> None:
        """Lay out the splits and apply the control, if one is asked for."""
        if hasattr(self, "train_set"):
            return
        self.prepare_data()
        assert self._content is not None
        content, self._content = self._content, None
        sets = self._sets(content)
        # Under a control they would be those of other data.
        self.shortcuts = dict(content["shortcuts"]) if self.config.control == "none" else {}
        self.majority = float(content["majority"])
        if self.config.control != "none":
            rng = np.random.default_rng([self.config.seed, 1])
            sets = {name: _control(dataset, self.config.control, rng, name) for name, dataset in sets.items()}
        self.train_set, self.val_set, self.test_set = sets.pop("train"), sets.pop("val"), sets.pop("test")
        self.extra_sets = sets

    def _sets(self, content: Mapping[str, Any]) -> dict[str, TripleDataset]:
        """Splits and further test sets by name, from what :meth:`_make` returned."""
        return {name: TripleDataset(stored["columns"], stored["slices"]) for name, stored in content["sets"].items()}

    def check_disjoint(self) -> None:
        """Prove that no patient, problem or world of one split occurs in another, nor one of training in any test set.

        Raises:
            RuntimeError: naming the splits and an instance they share.
        """
        seen: dict[int, str] = {}
        known: set[int] = set()
        for name, dataset in (("train", self.train_set), ("val", self.val_set), ("test", self.test_set)):
            instances = set(dataset.column("instance").tolist())
            shared = instances & seen.keys()
            if shared:
                instance = min(shared)
                raise RuntimeError(f"instance {instance} of {self.name} is in {seen[instance]} and in {name}")
            if name != "test":
                known |= instances
            seen |= dict.fromkeys(instances, name)
        for name, dataset in self.extra_sets.items():
            shared = known & set(dataset.column("instance").tolist())
            if shared:
                raise RuntimeError(f"instance {min(shared)} of {self.name} is in {seen[min(shared)]} and in {name}")

    @property
    def test_sets(self) -> dict[str, TripleDataset]:
        """Every set that is scored at the end, in the order of :meth:`test_dataloader`."""
        return {"test": self.test_set, **self.extra_sets}

    def train_dataloader(self) -> DataLoader:
        trainer: Any = self.trainer  # whose declared type lacks the progress
        # What Lightning gives ``set_epoch``, but workers ask before it does.
        epoch = trainer.fit_loop.epoch_progress.current.processed if trainer else 0
        rank, world_size = self._place()
        return TrainLoader(
            self.train_set,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            **self._workers(),
        )

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self._place()
        part = range(rank, len(self.val_set), world_size)
        return self._eval_loader(self.val_set, sampler=part if world_size > 1 else None)

    def test_dataloader(self) -> list[DataLoader]:
        return [self._eval_loader(dataset) for dataset in self.test_sets.values()]

    def ordered_dataloader(self, dataset: TripleDataset) -> DataLoader:
        """Every sample of one of the domain's sets once, in order."""
        return self._eval_loader(dataset)

    def _place(self) -> tuple[int, int]:
        """Which of how many devices this process drives."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _eval_loader(self, dataset: TripleDataset, sampler: range | None = None) -> DataLoader:
        size = self.config.eval_batch_size
        return DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=as_is, **self._workers())

    def _workers(self) -> dict[str, Any]:
        workers = self.config.num_workers
        return {"num_workers": workers, "pin_memory": self.config.pin_memory, "persistent_workers": workers > 0}

    def _description(self) -> dict[str, Any]:
        """Everything that decides the generated bytes."""
        settings = dataclasses.asdict(self.config)
        decided = {key: value for key, value in settings.items() if key not in (*LOADER_FIELDS, "control")}
        return {"domain": self.name, "version": self.version, "audit": shortcuts.VERSION, **decided}

    def _make(self) -> dict[str, Any]:
        log.info("generating %s and auditing its shortcuts; kept in %s", self.name, self.config.cache_dir)
        with threadpool_limits(1):  # the matrices are small: on busy cores BLAS threads cost ten times what they save
            sets = self.generate(np.random.default_rng(self.config.seed))
        audited = shortcuts.audit(
            sets["train"], sets["test"], len(self.relations), len(self.entity_types), self.local_features
        )
        return {
            "sets": {name: {"columns": d.columns, "slices": dict(d.slices)} for name, d in sets.items()},
            "shortcuts": audited,
            "majority": shortcuts.majority(sets["train"], sets["test"]),
        }


def _control(dataset: TripleDataset, control: str, rng: np.random.Generator, name: str) -> TripleDataset:
    """The same samples with what could be learned destroyed."""
    columns = dataset.columns
    if control == "shuffled_labels":
        if name == "train":
            columns["y"].copy_(columns["y"][torch.as_tensor(rng.permutation(len(dataset)))])
        return dataset
    sizes = torch.diff(dataset.slices["x"]).repeat_interleave(torch.diff(dataset.slices["edge_index"]))
    columns["edge_index"] = torch.as_tensor(rng.random((2, len(sizes)))).mul(sizes).long()
    return TripleDataset(columns, dataset.slices)
