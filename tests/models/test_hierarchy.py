"""What every model promises: order and batching do not matter, every parameter learns, WHAT inverts WHY."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch

from nsm.config import ConfigError, ModelConfig
from nsm.data.triples import TripleDataset
from nsm.models.baselines import BagConfig, FlatConfig
from nsm.models.hierarchy import NSMConfig, standardised_error

from .conftest import SIZES

SMALL = {"node_features": 8, "num_bases": 3, "query_features": 4, "dropout": 0.0}
MODELS = [
    pytest.param(NSMConfig(**SMALL, levels=2), id="nsm2"),
    pytest.param(NSMConfig(**SMALL, levels=3), id="nsm3"),
    pytest.param(NSMConfig(**SMALL, levels=6, pool_ratio=0.8), id="nsm6"),
    pytest.param(NSMConfig(**SMALL, levels=3, pool_ratio=0.4, level_aware=True), id="nsm3-level-aware"),
    pytest.param(FlatConfig(**SMALL, layers=3), id="flat"),
    pytest.param(BagConfig(**SMALL), id="bag"),
]


def built(config: ModelConfig, **sizes: object) -> nn.Module:
    """A model away from its initial symmetries (several layers start at zero)."""
    torch.manual_seed(0)
    model = config.build(**(SIZES | sizes))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("config", MODELS)
def test_a_batch_gives_what_its_samples_give_one_by_one(config: ModelConfig, dataset: TripleDataset) -> None:
    model = built(config)
    together = model(dataset.__getitems__(list(range(len(dataset)))))
    apart = [model(dataset.__getitems__([index])).logits for index in range(len(dataset))]
    torch.testing.assert_close(together.logits, torch.cat(apart), rtol=1e-4, atol=1e-4)
    assert together.logits.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("config", MODELS)
def test_order_of_nodes_and_of_triples_does_not_matter(config: ModelConfig, dataset: TripleDataset) -> None:
    model, data = built(config), dataset[5]
    generator = torch.Generator().manual_seed(1)
    nodes = torch.randperm(data.num_nodes, generator=generator)
    triples = torch.randperm(data.num_edges, generator=generator)
    place = torch.empty_like(nodes)
    place[nodes] = torch.arange(len(nodes))
    shuffled = data.clone()
    shuffled.x, shuffled.level = data.x[nodes], data.level[nodes]
    shuffled.edge_index, shuffled.query_index = place[data.edge_index][:, triples], place[data.query_index]
    shuffled.edge_type, shuffled.edge_attr = data.edge_type[triples], data.edge_attr[triples]
    before, after = model(Batch.from_data_list([data])), model(Batch.from_data_list([shuffled]))
    torch.testing.assert_close(before.logits, after.logits, rtol=1e-4, atol=1e-4)
    if model.reconstructs:
        torch.testing.assert_close(before.cycle_loss, after.cycle_loss, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize("has_query", [True, False])
def test_gradients_reach_every_parameter(config: ModelConfig, has_query: bool, batch: Batch) -> None:
    model = built(config, has_query=has_query)
    output = model(batch)
    loss = nn.functional.cross_entropy(output.logits, batch.y)
    if output.cycle_loss is not None:
        loss = loss + output.cycle_loss
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@pytest.mark.parametrize("config", MODELS)
def test_relation_type_and_confidence_decide(config: ModelConfig, batch: Batch) -> None:
    model = built(config)
    before = model(batch).logits
    for key, value in (("edge_type", batch.edge_type.flip(0)), ("edge_attr", 1 - batch.edge_attr)):
        other = batch.clone()
        other[key] = value
        assert (model(other).logits - before).abs().max() > 1e-3, key


@pytest.mark.parametrize("num_logits", [1, 2])
def test_logits_have_the_shape_that_the_task_asks_for(num_logits: int, batch: Batch) -> None:
    for config in (NSMConfig(**SMALL), FlatConfig(**SMALL), BagConfig(**SMALL)):
        assert built(config, num_logits=num_logits)(batch).logits.shape == (batch.num_graphs, num_logits)


def test_each_level_keeps_the_pool_ratio_and_only_the_top_is_not_pooled(batch: Batch) -> None:
    levels = built(NSMConfig(**SMALL, levels=4, pool_ratio=0.5)).ascend(batch, 1.0)
    sizes = torch.stack([torch.bincount(level.graph.batch) for level in levels])
    assert torch.equal(sizes[1:], torch.ceil(sizes[:-1] / 2).long())
    assert [level.contraction is None for level in levels] == [False, False, False, True]


def test_temperature_changes_what_the_hierarchy_says(batch: Batch) -> None:
    model = built(NSMConfig(**SMALL))
    assert (model(batch, temperature=1.0).logits - model(batch, temperature=0.3).logits).abs().max() > 1e-3


def test_the_way_down_uses_the_inverse_of_the_way_up(batch: Batch) -> None:
    model = built(NSMConfig(**SMALL, levels=3, pool_ratio=1.0, upper_layers=0, decoder_layers=0))
    for what in model.what:  # nothing is merged and WHAT passes on what it gets: only the couplings remain
        for layer in (what.seed, what.out):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
    levels = model.ascend(batch, 1.0)
    assert (levels[-1].x - levels[0].x).abs().max() > 0.05
    target, rebuilt = model.reconstruct(batch)
    torch.testing.assert_close(rebuilt, target, rtol=1e-4, atol=1e-4)


def test_cycle_loss_cannot_move_its_target(batch: Batch) -> None:
    model = built(NSMConfig(**SMALL, levels=2, upper_layers=0))
    levels = model.ascend(batch, 1.0)
    rebuilt = model.descend(levels, levels[-1].x.detach())  # cut the way through the top
    standardised_error(rebuilt[0], levels[0].x.detach()).backward()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_reconstruction_depends_on_the_top_level(batch: Batch) -> None:
    model = built(NSMConfig(**SMALL))
    _, own = model.reconstruct(batch)

    def shuffled_by(seed: int) -> torch.Tensor:
        return model.reconstruct(batch, shuffle_top=True, generator=torch.Generator().manual_seed(seed))[1]

    shuffled = [shuffled_by(0), shuffled_by(0), shuffled_by(1)]
    assert (own - shuffled[0]).abs().max() > 1e-3
    assert torch.equal(shuffled[0], shuffled[1])
    assert not torch.equal(shuffled[0], shuffled[2])


def test_standardised_error_is_zero_when_exact_and_about_one_for_the_mean() -> None:
    target = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 5, 10, 0.5])
    assert standardised_error(target, target) == 0
    assert standardised_error(target.mean(0).expand_as(target), target) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"levels": 9}, "model.levels=9"),
        ({"levels": 1}, "model.levels=1"),
        ({"pool_ratio": 0.0}, "model.pool_ratio=0.0"),
        ({"pool_ratio": 1.5}, "model.pool_ratio=1.5"),
        ({"cycle_weight": -0.1}, "model.cycle_weight=-0.1"),
        ({"node_features": 12}, "model.node_features=12"),
        ({"num_bases": 0}, "model.num_bases=0"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"layers": 0}, "model.layers=0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(values: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        NSMConfig(**values)
