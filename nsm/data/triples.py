"""Triples and the graphs they make: the one place that knows the batch contract.

A sample is a set of triples and a binary label. Many samples are stored end to end in a few tensors, so that a batch is
made by indexing, without Python per graph.

Shape letters: G graphs, N nodes, E edges (triples), of one sample or of a batch, as the context says.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch_geometric.data import Batch, Data, InMemoryDataset

NODE_KEYS = ("x", "level")
EDGE_KEYS = ("edge_index", "edge_type", "edge_attr")


class Triple(NamedTuple):
    """One statement: subject, predicate, object, confidence in it (0 to 1) and level of abstraction (from 1)."""

    subject: str
    predicate: str
    object: str
    confidence: float = 1.0
    level: int = 1


class TripleDataset(InMemoryDataset):
    """Samples stored end to end: ``dataset[i]`` is one PyG ``Data``, a loader gets whole batches.

    Each sample holds ``x`` [N] entity-type token, ``level`` [N] level of abstraction (from 1), ``edge_index`` [2, E],
    ``edge_type`` [E] predicate id, ``edge_attr`` [E] confidence (float32, 0 to 1), ``y`` [1] label (0 or 1) and
    ``instance`` [1], the id of the patient, problem or world it was drawn from, which no two splits share. Where the
    label is about one pair of nodes, ``query_index`` [2, 1] holds them and ``query_type`` [1] the predicate asked
    about. A domain adds one number a sample for each of its breakdowns.
    """

    def __init__(self, columns: Mapping[str, Tensor], slices: Mapping[str, Tensor]) -> None:
        super().__init__(root=None)
        self.data = Data.from_dict(dict(columns))
        self.slices = dict(slices)

    @classmethod
    def from_columns(
        cls,
        *,
        num_nodes: ArrayLike,
        num_edges: ArrayLike,
        x: ArrayLike,
        level: ArrayLike,
        edge_index: ArrayLike,
        edge_type: ArrayLike,
        edge_attr: ArrayLike,
        query_index: ArrayLike | None = None,
        **per_graph: ArrayLike,
    ) -> "TripleDataset":
        """Build the dataset from arrays that hold all samples end to end.

        Args:
            num_nodes, num_edges: [G], the sizes of the samples, in order.
            x, level: [sum of N].
            edge_index: [2, sum of E], node numbers within their own sample (each sample counts from 0).
            edge_type, edge_attr: [sum of E].
            query_index: [2, G], likewise within the sample.
            per_graph: [G] each: ``y``, ``instance``, ``query_type`` and the domain's own.
        """
        node_ptr, edge_ptr = _pointers(num_nodes), _pointers(num_edges)
        graph_ptr = torch.arange(len(node_ptr))
        columns = {
            "x": torch.as_tensor(np.asarray(x, dtype=np.int64)),
            "level": torch.as_tensor(np.asarray(level, dtype=np.int64)),
            "edge_index": torch.as_tensor(np.asarray(edge_index, dtype=np.int64)),
            "edge_type": torch.as_tensor(np.asarray(edge_type, dtype=np.int64)),
            "edge_attr": torch.as_tensor(np.asarray(edge_attr, dtype=np.float32)),
        }
        slices = dict.fromkeys(NODE_KEYS, node_ptr) | dict.fromkeys(EDGE_KEYS, edge_ptr)
        if query_index is not None:
            columns["query_index"] = torch.as_tensor(np.asarray(query_index, dtype=np.int64))
            slices["query_index"] = graph_ptr
        for key, value in per_graph.items():
            array = np.asarray(value)
            dtype = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
            columns[key] = torch.as_tensor(array.astype(dtype))
            slices[key] = graph_ptr
        return cls(columns, slices)

    @property
    def columns(self) -> dict[str, Tensor]:
        """Every stored tensor by name, all samples end to end (the whole dataset, whatever subset this view shows)."""
        return {key: value for key, value in self._data.to_dict().items() if isinstance(value, Tensor)}

    def column(self, key: str) -> Tensor:
        """Values of a per-sample attribute for the samples of this view, in order: [G]."""
        return self._data[key][self._positions(slice(None))]

    def get(self, idx: int) -> Data:
        """The sample stored at position ``idx``."""
        return self._gather(torch.tensor([idx]), Data())

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of the samples at ``indices``, what PyG's ``Batch.from_data_list`` would give, made by indexing."""
        positions = self._positions(torch.as_tensor(indices))
        batch = self._gather(positions, Batch(_base_cls=Data))
        sizes = self.slices["x"][positions + 1] - self.slices["x"][positions]
        batch.ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        batch.batch = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        increments = {}
        for key in ("edge_index", "query_index"):
            if key in batch:
                counts = torch.diff(batch._slice_dict[key])
                batch[key] = batch[key] + torch.repeat_interleave(batch.ptr[:-1], counts)
                increments[key] = batch.ptr[:-1]
        zeros = torch.zeros(len(sizes), dtype=torch.long)
        batch._inc_dict = {key: increments.get(key, zeros) for key in batch._slice_dict}
        batch._num_graphs = len(sizes)
        return batch

    def _positions(self, indices: Any) -> Tensor:
        """Where the samples of this view lie in storage."""
        if self._indices is None:
            return torch.arange(len(self))[indices]
        return torch.as_tensor(list(self._indices))[indices]

    def _gather(self, positions: Tensor, out: Any) -> Any:
        rows: dict[int, Tensor] = {}
        pointers: dict[int, Tensor] = {}
        out._slice_dict = {}
        for key, ptr in self.slices.items():
            if id(ptr) not in rows:
                starts, sizes = ptr[positions], ptr[positions + 1] - ptr[positions]
                ends = sizes.cumsum(0)
                rows[id(ptr)] = torch.repeat_interleave(starts - ends + sizes, sizes) + torch.arange(int(sizes.sum()))
                pointers[id(ptr)] = torch.cat([ends.new_zeros(1), ends])
            value = self._data[key]
            out[key] = value.index_select(value.dim() - 1, rows[id(ptr)])
            out._slice_dict[key] = pointers[id(ptr)]
        return out


class TripleWriter:
    """Collects samples that are made one at a time, and stores them end to end."""

    def __init__(self) -> None:
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._num_nodes: list[int] = []
        self._num_edges: list[int] = []

    def __len__(self) -> int:
        return len(self._num_nodes)

    def add(
        self,
        *,
        x: ArrayLike,
        level: ArrayLike,
        edge_index: ArrayLike,
        edge_type: ArrayLike,
        edge_attr: ArrayLike,
        query_index: ArrayLike | None = None,
        **per_graph: float,
    ) -> None:
        """Add one sample; shapes as in :meth:`TripleDataset.from_columns`, for one graph, with scalars per graph."""
        arrays = {"x": x, "level": level, "edge_index": edge_index, "edge_type": edge_type, "edge_attr": edge_attr}
        if query_index is not None:
            arrays["query_index"] = np.reshape(query_index, (2, 1))
        arrays |= {key: np.reshape(value, 1) for key, value in per_graph.items()}
        if self._arrays and arrays.keys() != self._arrays.keys():
            raise ValueError(f"every sample must have the attributes {sorted(self._arrays)}, got {sorted(arrays)}")
        for key, value in arrays.items():
            self._arrays.setdefault(key, []).append(np.asarray(value))
        self._num_nodes.append(len(self._arrays["x"][-1]))
        self._num_edges.append(len(self._arrays["edge_type"][-1]))

    def dataset(self) -> TripleDataset:
        """All samples added so far."""
        columns = {key: np.concatenate(values, axis=-1) for key, values in self._arrays.items()}
        return TripleDataset.from_columns(num_nodes=self._num_nodes, num_edges=self._num_edges, **columns)


def node_names(data: Data, entity_types: Sequence[str]) -> list[str]:
    """Names of a sample's nodes by type and number.

    Raises:
        ValueError: if the sample uses a type that the vocabulary lacks.
    """
    if int(data.x.max()) >= len(entity_types):
        raise ValueError(f"entity type {int(data.x.max())} is outside the {len(entity_types)} entity types")
    return [f"{entity_types[token]}_{node}" for node, token in enumerate(data.x.tolist())]


def triples_of(data: Data, relations: Sequence[str], names: Sequence[str]) -> list[Triple]:
    """Read a sample back as triples, its nodes named as said.

    Raises:
        ValueError: if the sample uses a predicate that the vocabulary lacks.
    """
    if data.edge_type.numel() and int(data.edge_type.max()) >= len(relations):
        raise ValueError(f"predicate id {int(data.edge_type.max())} is outside the {len(relations)} relations")
    levels = data.level.tolist()
    return [
        Triple(names[s], relations[r], names[o], confidence, max(levels[s], levels[o]))
        for (s, o), r, confidence in zip(
            data.edge_index.t().tolist(), data.edge_type.tolist(), data.edge_attr.tolist(), strict=True
        )
    ]


def _pointers(sizes: ArrayLike) -> Tensor:
    counts = torch.as_tensor(np.asarray(sizes, dtype=np.int64))
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
