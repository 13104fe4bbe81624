"""Candidate triples whose graphs are cut out when a batch asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from nsm.data.subgraphs import Candidates, Extractor, Subgraphs
from nsm.data.triples import TripleDataset

CACHED_BYTES = 256 * 2**20
"""Of the graphs that a dataset keeps once they were cut out, at most; those that come later are cut out each time."""


class SubgraphDataset(TripleDataset):
    """Samples like any other, of which only the candidates are stored.

    ``columns`` holds ``query_index`` [2, G] (subject and object as numbers of the whole graph; in a sample they are
    positions within it), ``query_type``, ``y``, ``instance`` and ``left_out`` [2, G], triples of the graph that the
    sample may not see. A sample also has ``subject`` and ``object`` [1], the numbers that the whole graph gives them,
    for models that learn something about each entity.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], extractor: Extractor, *, cached_bytes: int = CACHED_BYTES
    ) -> None:
        slices = torch.arange(columns["y"].numel() + 1)
        super().__init__(columns, dict.fromkeys(columns, slices))
        self.extractor, self.cached_bytes = extractor, cached_bytes
        self._kept: dict[int, Subgraphs] = {}
        self._kept_bytes = 0

    @classmethod
    def of(
        cls,
        extractor: Extractor,
        *,
        subject: np.ndarray,
        relation: np.ndarray,
        object: np.ndarray,
        left_out: np.ndarray,
        cached_bytes: int = CACHED_BYTES,
        **per_graph: np.ndarray,
    ) -> "SubgraphDataset":
        """From arrays [G], and ``left_out`` [G, 2]."""
        columns = {"query_index": np.stack([subject, object]), "query_type": relation, "left_out": left_out.T}
        columns |= per_graph
        tensors = {key: torch.as_tensor(np.ascontiguousarray(value)) for key, value in columns.items()}
        return cls(tensors, extractor, cached_bytes=cached_bytes)

    def get(self, idx: int) -> Data:
        """The sample stored at position ``idx``."""
        return self.cut_out(torch.tensor([idx])).get(0)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of the samples at ``indices``."""
        return self.cut_out(self._positions(torch.as_tensor(indices))).__getitems__(range(len(indices)))

    def cut_out(self, positions: Tensor) -> TripleDataset:
        """The samples at these positions in storage, graphs and all."""
        found = self._subgraphs(positions.numpy())
        graph, columns = self.extractor.graph, self.columns
        subject, object_ = columns["query_index"][:, positions].numpy()
        own = {key: columns[key][positions].numpy() for key in columns if key not in ("query_index", "left_out")}
        return TripleDataset.from_columns(
            num_nodes=found.num_nodes,
            num_edges=found.num_edges,
            x=graph.x[found.nodes],
            level=graph.level[found.nodes],
            edge_index=found.edge_index,
            edge_type=graph.relation[found.edges],
            edge_attr=graph.confidence[found.edges],
            query_index=found.query_index,
            subject=subject,
            object=object_,
            **own,
        )

    def _subgraphs(self, positions: np.ndarray) -> Subgraphs:
        missing = np.array([position for position in positions.tolist() if position not in self._kept], dtype=np.int64)
        fresh: dict[int, Subgraphs] = {}
        if len(missing):
            cut = self.extractor.extract(self.candidates(missing))
            if len(missing) == len(positions) and self._kept_bytes >= self.cached_bytes:
                return cut
            fresh = dict(zip(missing.tolist(), _parts(cut), strict=True))
            if self._kept_bytes < self.cached_bytes:
                self._kept |= fresh
                self._kept_bytes += sum(array.nbytes for part in fresh.values() for array in part)
        return _joined([fresh[p] if p in fresh else self._kept[p] for p in positions.tolist()])

    def candidates(self, positions: np.ndarray) -> Candidates:
        """The candidates at these positions in storage."""
        columns = self.columns
        subject, object_ = columns["query_index"].numpy()[:, positions]
        left_out = columns["left_out"].numpy()[:, positions].T
        return Candidates(subject, columns["query_type"].numpy()[positions], object_, left_out)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs kept: a process that loads batches keeps its own."""
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}


def _parts(batch: Subgraphs) -> list[Subgraphs]:
    """Each sample for itself, in arrays of its own no larger than they need to be."""
    node_ends, edge_ends = batch.num_nodes.cumsum()[:-1], batch.num_edges.cumsum()[:-1]
    narrow = np.int16 if batch.num_nodes.max() < 2**15 else np.int64
    return [
        Subgraphs(*(np.array(array, dtype=dtype) for array, dtype in zip(arrays, dtypes, strict=True)))
        for dtypes in [(np.int64, np.int64, np.int32, np.int32, narrow, narrow)]
        for arrays in zip(
            batch.num_nodes[:, None],
            batch.num_edges[:, None],
            np.split(batch.nodes, node_ends),
            np.split(batch.edges, edge_ends),
            np.split(batch.edge_index, edge_ends, axis=1),
            np.split(batch.query_index, len(batch.num_nodes), axis=1),
            strict=True,
        )
    ]


def _joined(parts: list[Subgraphs]) -> Subgraphs:
    return Subgraphs(*(np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)))
