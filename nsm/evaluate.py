"""``python -m nsm.evaluate run=FOLDER [split=test] [checkpoint=best]``: one checkpoint, looked at closely.

split       test (default; brings the domain's further test sets), val or train
checkpoint  best (default), last, the name of a file in the run's folder, or a path
hardware=…, domain.cache_dir=…, domain.eval_batch_size=…
            where to compute and where the data lies, as for nsm.train; hardware=auto by default

Writes evaluation_<split>.json and pictures, evaluation_<split>_<what>.png, into the run's folder and prints a table.
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from matplotlib.figure import Figure
from torch import Tensor

from nsm import figures, runs
from nsm.config import ConfigError, check
from nsm.data.triples import TripleDataset
from nsm.intervals import FEW
from nsm.predictions import RESAMPLES, domain_figures, score_set, worst_mistakes
from nsm.restore import ELSEWHERE, Restored, restore

SPLITS = ("test", "val", "train")
MISTAKES = 10
"""Worst mistakes that are written out as triples."""
OWN_THRESHOLDS = "with a threshold for each relation, chosen on validation"
FURTHER = ("accuracy", "auroc", "r2")
"""Figures of the domain's further test sets that the table shows."""
GROUPS, TRIPLES = 8, 20
"""Groups of a breakdown and triples of a mistake that the table shows, at most."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says; exit with 1 and one message where that cannot be done."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options, elsewhere = read_arguments(words)
        folder = Path(options["run"])
        print(format_evaluation(evaluate(folder, options["split"], options["checkpoint"], elsewhere)))
        written = sorted(path.name for path in folder.glob(f"evaluation_{options['split']}*"))
        print(f"\nin {folder}: {', '.join(written)}")
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def read_arguments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """``run``, ``split`` and ``checkpoint`` from the command line, and the overrides that say where to compute.

    Raises:
        ConfigError: naming the first word that cannot be used.
    """
    options = {"run": "", "split": "test", "checkpoint": "best"}
    elsewhere = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in options:
            options[key] = value
        elif equals and word.startswith(ELSEWHERE):
            elsewhere.append(word)
        else:
            raise ConfigError(f"{word} cannot be used: run=, split=, checkpoint=, {', '.join(ELSEWHERE)}")
    check(bool(options["run"]), "run", options["run"], "the folder of a run, such as outputs/causal/<timestamp>")
    return options, elsewhere


def evaluate(
    folder: Path, split: str = "test", checkpoint: str = "best", elsewhere: Sequence[str] = ()
) -> dict[str, Any]:
    """Score a checkpoint of the run in ``folder``, write what was found beside it, and return it.

    Args:
        folder: of the run.
        split: one of :data:`SPLITS`.
        checkpoint, elsewhere: as for :func:`nsm.restore.restore`.

    Raises:
        ConfigError: for anything that cannot be used, with a remedy.
    """
    start = time.perf_counter()
    check(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")
    restored = restore(folder, checkpoint, elsewhere)
    datamodule, task = restored.datamodule, restored.config.task.type
    of_split = {"val": {"val": datamodule.val_set}, "train": {"train": datamodule.train_set}}
    sets = of_split.get(split, datamodule.test_sets)
    predictions = {name: predict(restored, dataset) for name, dataset in sets.items()}
    answers = {
        name: datamodule.answers(dataset, predictions[name], restored.module.scorer) for name, dataset in sets.items()
    }
    classifies, known = task != "regression", split == "test" and datamodule.config.control == "none"
    result = {
        "run": str(folder),
        "split": split,
        "checkpoint": restored.checkpoint.name,
        "epoch": restored.epoch,
        "domain": datamodule.name,
        "task": task,
        "confidence": 0.95,
        "resamples": RESAMPLES,
        "majorities": (
            {name: datamodule.majority if name == "test" else one_answer(sets[name]) for name in sets}
            if classifies and split == "test"
            else {}
        ),
        "answers": OWN_THRESHOLDS if datamodule.own_thresholds else "P(1) > .5",
        "drawn": datamodule.instance_noun,
        "shortcuts": datamodule.shortcuts if classifies and known else {},
        "ceilings": datamodule.ceilings if classifies and known else {},
        "sets": {name: score_set(datamodule, sets[name], predictions[name], answers[name], task) for name in sets},
        "domain_figures": domain_figures(datamodule, predictions) if classifies and split == "test" else {},
        "mistakes": (
            worst_mistakes(datamodule, sets[split], predictions[split], answers[split], MISTAKES) if classifies else []
        ),
        "device": restored.config.hardware.device,
        "seconds": time.perf_counter() - start,
    }
    runs.write_json(folder / f"evaluation_{split}.json", result)
    for name, figure in draw(result, sets[split], predictions[split]).items():
        figures.save(figure, folder / f"evaluation_{split}_{name}.png")
    return result


def predict(restored: Restored, dataset: TripleDataset) -> Tensor:
    """Predictions [G] for every sample of a set, in order, on the CPU."""
    hardware = restored.config.hardware
    trainer = Trainer(
        **hardware.trainer_options,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    parts: Any = trainer.predict(restored.module, restored.datamodule.ordered_dataloader(dataset))
    return torch.cat([part.cpu() for part in parts])


def one_answer(dataset: TripleDataset) -> float:
    """Accuracy of the better of the two constant answers."""
    share = float(dataset.column("y").float().mean())
    return max(share, 1 - share)


def draw(result: Mapping[str, Any], dataset: TripleDataset, prediction: Tensor) -> dict[str, Figure]:
    """The pictures of an evaluation, by name."""
    scored = result["sets"][result["split"]]
    where = f"{result['domain']}, {result['split']}, {result['checkpoint']}"
    if result["task"] == "regression":
        return {"scatter": figures.prediction_scatter(prediction.numpy(), dataset.column("target").numpy(), where)}
    drawn = {
        "confusion": figures.confusion(scored["confusion"], where),
        "calibration": figures.calibration(scored["calibration"], where),
    }
    for name, other in result["sets"].items():
        if other["breakdowns"]:
            of_set = "" if name == result["split"] else f"_{name}"
            drawn[f"breakdowns{of_set}"] = figures.breakdowns(other["breakdowns"], f"{result['domain']}, {name}")
    return drawn


def format_evaluation(result: Mapping[str, Any]) -> str:
    """The table that ends an evaluation; the files in the run's folder hold all of it."""
    title = f"{result['domain']}, {result['checkpoint']} of epoch {result['epoch']}, on {result['device']}"
    lines = [f"{title}; brackets hold intervals of 95 %"]
    if result["answers"] == OWN_THRESHOLDS:
        lines.append(f"answers, accuracies and mistakes: {OWN_THRESHOLDS}; ece and log_loss: of P(1)")
    if result["split"] != "test" and result["task"] != "regression":
        lines.append("majority, shortcuts and ceiling are known of the test split alone")
    for name, scored in result["sets"].items():
        instances = f" of {scored['instances']:,} {result['drawn']}" if scored["instances"] != scored["samples"] else ""
        few = f", too few {result['drawn']} for intervals" if scored["instances"] < FEW else ""
        lines += ["", f"{name}: {scored['samples']:,} samples{instances}{few}"]
        main_set = name == result["split"]
        shown = {key: value for key, value in scored["metrics"].items() if main_set or key in FURTHER}
        judges = {"majority": result["majorities"].get(name), **(result["shortcuts"] if main_set else {})}
        judges = {judge: value for judge, value in judges.items() if not judge.endswith("_matched")}
        judges["ceiling"] = result["ceilings"].get(name)
        for key, interval in shown.items():
            lines.append(_row(key, interval))
            if key == "accuracy":
                lines += [_row(f"  {judge}", {"value": value}) for judge, value in judges.items() if value is not None]
        if not main_set:
            continue
        lines += [_row(key, interval) for key, interval in result["domain_figures"].items()]
        for breakdown, groups in scored.get("breakdowns", {}).items():
            worst = sorted(groups, key=lambda row: row["accuracy"]["value"]) if len(groups) > GROUPS else groups
            left_out = f", the {GROUPS} worst of {len(groups)}" if len(groups) > GROUPS else ""
            lines.append(f"accuracy by {breakdown}{left_out}")
            lines += [
                _row(f"  {row['group']}", row["accuracy"], f"{row['samples']:>7,} samples") for row in worst[:GROUPS]
            ]
    for mistake in result["mistakes"][:1]:
        question = mistake["question"] or f"sample {mistake['position']}"
        groups = "".join(f", {group}" for group in mistake["groups"].values())
        given = f"P(1) = {mistake['probability']:.3f}"
        lines += ["", f"worst mistake: {question} is {mistake['y']}, given {given}{groups}"]
        lines += [f"  {triple}" for triple in mistake["triples"][:TRIPLES]]
        more = len(mistake["triples"]) - TRIPLES
        lines += [f"  … and {more} more triples"] * (more > 0)
    return "\n".join(lines)


def _row(name: str, interval: Mapping[str, float | None], note: str = "") -> str:
    value, low, high = (interval.get(key) for key in ("value", "low", "high"))
    shown = "undefined" if value is None else f"{value:.3f}"
    bounds = "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
    return f"  {name:<32}{shown:>9}  {bounds:<18}{note}".rstrip()


if __name__ == "__main__":
    main()
