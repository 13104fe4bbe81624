"""The scores of a run's candidate triples, in its folder: to be averaged with those of other runs, and to be read.

Shape letters: K triples.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nsm.files import SCORES
from nsm.storage import DamagedError, write_whole

PREDICTIONS = "predictions_test.tsv"
SETS = ("val", "test")


class Scored(NamedTuple):
    """Candidate triples of one split with their scores, [K] each."""

    relation: np.ndarray
    y: np.ndarray
    score: np.ndarray


def save_scores(folder: Path, triples: Mapping[str, np.ndarray], scored: Mapping[str, Scored]) -> None:
    """Write candidates and scores of validation and test, sorted by triple, whatever order the run had them in.

    Args:
        triples: of each set, subject, relation, object [3, K]. scored: their labels and scores.
    """
    arrays: dict[str, Any] = {}
    for name in SETS:
        order = np.lexsort(triples[name])
        arrays[f"{name}_triples"] = triples[name][:, order]
        arrays[f"{name}_y"], arrays[f"{name}_score"] = scored[name].y[order], scored[name].score[order]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(folder / SCORES, buffer.getvalue())


def save_predictions(
    folder: Path, triples: Sequence[Sequence[int]], names: Sequence[Sequence[str]], scored: Scored, answer: np.ndarray
) -> None:
    """Write every test candidate by name: what it is, how it scores, and how it is answered.

    Args:
        triples: subject, relation, object [3, K] as numbers. names: what they are called, for each of the three.
        answer: [K].
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(("subject", "predicate", "object", "y", "score", "answer"))
    called = ([table[number] for number in column] for table, column in zip(names, triples, strict=True))
    writer.writerows(zip(*called, scored.y, scored.score, answer.astype(int), strict=True))
    write_whole(folder / PREDICTIONS, text.getvalue().encode())


def load_scores(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Scored]]:
    """Candidates [3, K] and scores of each set, as :func:`save_scores` wrote them.

    Raises:
        FileNotFoundError: if the run has left none.
        DamagedError: if the file does not hold them.
    """
    path = folder / SCORES
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content) as stored:
            triples = {name: stored[f"{name}_triples"] for name in SETS}
            return triples, {
                name: Scored(triples[name][1], stored[f"{name}_y"], stored[f"{name}_score"]) for name in SETS
            }
    except Exception as error:  # bytes that mean nothing make NumPy raise nearly anything
        raise DamagedError(f"{path} is damaged ({error}); the run's command with resume=never makes it anew") from error
