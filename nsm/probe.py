"""How much of a reconstruction needs no abstraction: a decoder of its own that sees the structure alone.

A low cycle error means little if the lower level's structure alone gives its features away. So a fresh decoder, of the
same make as the model's, is trained on the finished encoder's features with nothing at the top but one learned vector.
"""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader

from nsm.metrics import UnexplainedVariance
from nsm.models.hierarchy import NSM, standardised_error


def structure_only_error(
    model: NSM,
    train_loader: DataLoader,
    test_loader: DataLoader,
    *,
    temperature: float,
    steps: int = 300,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Unexplained variance of level-1 features on the test set, rebuilt from structure alone; 1 is the mean.

    Args:
        model: a trained hierarchy; it is left as it is.
        train_loader: batches to train the probe on; ``steps`` of them, over again if there are fewer.
        temperature: of the hierarchy.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        probe = copy.deepcopy(model).eval()
        for module in (*probe.what.modules(), *probe.couplings.modules()):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        top = nn.Parameter(torch.zeros(1, probe.encoder.level.embedding_dim, device=device))
        learned = [top, *probe.what.parameters()]
        optimizer = torch.optim.Adam(learned, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
        step = 0
        while step < steps:
            for batch in train_loader:
                if step == steps:
                    break
                batch = batch.to(device)
                with torch.no_grad():
                    levels = model.ascend(batch, temperature)
                rebuilt = probe.descend(levels, top.expand(len(levels[-1].x), -1))[0]
                optimizer.zero_grad()
                standardised_error(rebuilt, levels[0].x).backward()
                optimizer.step()
                schedule.step()
                step += 1
        error = UnexplainedVariance(top.shape[1]).to(device)
        with torch.no_grad():
            for batch in test_loader:
                levels = model.ascend(batch.to(device), temperature)
                rebuilt = probe.descend(levels, top.expand(len(levels[-1].x), -1))[0]
                error.update(levels[0].x, rebuilt)
    return float(error.compute())
