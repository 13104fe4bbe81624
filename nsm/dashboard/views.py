"""Data and model of a planned run, before it is trained."""

from typing import Any

import numpy as np
from IPython.display import display
from omegaconf import OmegaConf

from nsm import drawings, figures
from nsm.dashboard.plan import Plan
from nsm.dashboard.tables import Table, picture
from nsm.data.datamodule import TripleDataModule
from nsm.module import build_module
from nsm.train import build_datamodule, prepare_process


def data(plan: Plan) -> TripleDataModule | None:
    """Generate or load the data; show sizes, the balance of the classes and one sample as a graph."""
    if not plan.runs:
        return None
    run = plan.runs[0]
    prepare_process(run.config)
    datamodule = build_datamodule(run.composed, run.config)
    sets = {"train": datamodule.train_set, "val": datamodule.val_set, **datamodule.test_sets}
    rows, shares = [], {}
    for name, dataset in sets.items():
        y, instances = dataset.column("y").numpy(), dataset.column("instance").unique()
        triples = [dataset[position].num_edges for position in range(min(100, len(dataset)))]
        shares[name] = float(y.mean())
        per_graph = f"{np.mean(triples):.1f}"
        rows.append(
            (name, f"{len(dataset):,}", f"{len(instances):,}", f"{1 - y.mean():.1%}", f"{y.mean():.1%}", per_graph)
        )
    header = ("set", "samples", "instances", "class 0", "class 1", "triples a sample")
    told = f"majority {datamodule.majority:.3f}; " + ", ".join(f"{k} {v:.3f}" for k, v in datamodule.shortcuts.items())
    display(Table(header, rows, f"No instance is in two of train, val and test. Test accuracy to beat: {told}."))
    display(picture(figures.class_balance(shares, f"{datamodule.name}, balance of the classes")))
    sample = datamodule.train_set.__getitems__([0])
    title = f"{datamodule.name}, a training sample of class {int(sample.y)}"
    display(picture(drawings.sample_graph(sample, datamodule.relations, datamodule.entity_types, title)))
    return datamodule


def model(plan: Plan, datamodule: TripleDataModule | None) -> None:
    """Show the parts of the model and how many parameters each has."""
    if not plan.runs or datamodule is None:
        return
    run = plan.runs[0]
    settings: Any = OmegaConf.to_container(run.composed, resolve=True)
    module = build_module(run.config, datamodule, settings)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.model.named_children()}
    rows = [(name, type(part).__name__, f"{counts[name]:,}") for name, part in module.model.named_children()]
    total = sum(parameter.numel() for parameter in module.model.parameters())
    display(Table(("part", "type", "parameters"), rows, f"{run.model}: {total:,} parameters"))
