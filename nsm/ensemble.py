"""``python -m nsm.ensemble RUN RUN ...``: what the averaged scores of several runs on one folder of triples reach."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nsm.data.protocols import auc_pr, triple_classification
from nsm.data.scores import SETS, Scored, load_scores
from nsm.files import SCORES

FIGURES = ("accuracy", "accuracy_matched", "auc_pr", "auroc")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of each run and of all together."""
    parser = argparse.ArgumentParser(prog="python -m nsm.ensemble", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, which holds " + SCORES)
    runs = parser.parse_args(arguments).runs
    try:
        rows = {str(run): figures(average([run])) for run in runs}
        if len(runs) > 1:
            rows["average"] = figures(average(runs))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    width = max(map(len, rows))
    print(" " * width, *(f"{name:>16}" for name in FIGURES))
    for run, found in rows.items():
        print(f"{run:<{width}}", *(f"{found[name]:>16.3f}" if name in found else f"{'-':>16}" for name in FIGURES))


def average(runs: Sequence[Path]) -> dict[str, Scored]:
    """The mean over runs of their scores, each run's in units of its own standard deviation on validation.

    Raises:
        ValueError: if two runs were not asked about the same triples.
        FileNotFoundError: if a run has left no scores.
    """
    loaded = [load_scores(run) for run in runs]
    triples, labelled = loaded[0]
    for run, (others, their) in zip(runs, loaded, strict=True):
        for name in SETS:
            if not np.array_equal(others[name], triples[name]) or not np.array_equal(their[name].y, labelled[name].y):
                raise ValueError(
                    f"{run} was asked about other triples than {runs[0]}: average runs on the same files, and where "
                    "no negatives are given, with the same domain.seed"
                )
    scales = [float(scored["val"].score.std()) or 1.0 for _, scored in loaded]
    return {
        name: labelled[name]._replace(
            score=np.mean(
                [scored[name].score / scale for (_, scored), scale in zip(loaded, scales, strict=True)], axis=0
            )
        )
        for name in SETS
    }


def figures(scored: dict[str, Scored]) -> dict[str, float]:
    """Triple classification and AUC-PR, with thresholds chosen on validation."""
    return triple_classification(scored["val"], scored["test"]) | auc_pr(scored["test"])


if __name__ == "__main__":
    main()
