"""How much of a reconstruction needs no abstraction: a decoder of its own that sees the structure alone.

A low cycle error means little if the lower level's structure gives its features away. So a fresh decoder, of the same
make as the model's, is trained on the finished encoder's features with one learned vector in place of every top node.
"""

from collections.abc import Iterable
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from nsm.metrics import UnexplainedVariance
from nsm.models.hierarchy import NSM, Level, standardised_error


class StructureDecoder(nn.Module):
    """WHAT's twin, untrained, that is given nothing of the top level but its shape."""

    def __init__(self, model: NSM) -> None:
        super().__init__()
        self.twin = NSM(model.config, model.sizes)
        self.top = nn.Parameter(torch.zeros(1, model.config.node_features))

    def forward(self, levels: list[Level]) -> Tensor:
        """Level-1 features [N, D], from the structure of all levels."""
        return self.twin.descend(levels, self.top.expand(levels[-1].graph.num_nodes, -1))[0]


def structure_only_error(
    model: NSM,
    train_batches: Iterable[Batch],
    test_batches: Iterable[Batch],
    *,
    temperature: float,
    steps: int,
    learning_rate: float = 3e-3,
) -> float:
    """Unexplained variance of level-1 features on the test set, rebuilt from structure alone: an upper bound.

    A probe that trained for longer may find more in the structure.

    Args:
        model: a trained hierarchy; it is left as it is.
        train_batches: what the probe learns from, over again until ``steps`` batches were seen.
        test_batches: what it is measured on.
        temperature: of the hierarchy.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        probe = StructureDecoder(model).to(device)
        learned = [probe.top, *probe.twin.what.parameters(), *probe.twin.couplings.parameters()]
        optimizer = torch.optim.Adam(learned, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
        for batch in islice(chain.from_iterable(repeat(train_batches)), steps):
            levels = _levels(model, batch.to(device), temperature)
            optimizer.zero_grad()
            standardised_error(probe(levels), levels[0].x).backward()
            optimizer.step()
            schedule.step()
        error = UnexplainedVariance(model.config.node_features).to(device)
        with torch.no_grad():
            for batch in test_batches:
                levels = _levels(model, batch.to(device), temperature)
                error.update(probe(levels), levels[0].x)
    return float(error.compute())


@torch.no_grad()
def _levels(model: NSM, batch: Batch, temperature: float) -> list[Level]:
    return model.ascend(batch, temperature)
