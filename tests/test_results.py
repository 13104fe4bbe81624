"""The table of results: means over seeds of like runs, and of nothing else."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from benchmarks.results import find_runs, main, spread


def add_run(folder: Path, accuracy: float, *overrides: str, seed: int = 0) -> None:
    run = {
        "domain": "causal",
        "model": "nsm",
        "levels": 2,
        "seed": seed,
        "test": {"accuracy": accuracy, "cycle_error": 10.5},
        "majority": 0.6,
        "shortcuts": {"predicate_counts": 0.61},
        "ceiling": 0.848,
        "ceiling_do": None,
        "collapsed": False,
        "parameters": 1234,
        "seconds": 10.0,
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "final_results.json").write_text(json.dumps(run))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(["domain=causal", f"seed={seed}", *overrides]))


def test_mean_over_seeds_of_runs_that_differ_in_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, accuracy in enumerate((0.80, 0.84, 0.85)):
        add_run(tmp_path / str(seed), accuracy, "hardware=cpu", seed=seed)
    add_run(tmp_path / "other", 0.5, "domain.control=shuffled_labels")
    main([str(tmp_path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| nsm")]
    values = [0.80, 0.84, 0.85]
    expected = f"{mean(values):.3f} ± {stdev(values):.3f}".replace("0.", ".")
    assert rows[0].startswith(f"| nsm, 2 levels | 0, 1, 2 | {expected} |")
    assert rows[1].startswith("| nsm, 2 levels, domain.control=shuffled_labels | 0 | .500 |")


def test_a_seed_that_ran_twice_is_refused(tmp_path: Path) -> None:
    add_run(tmp_path / "a", 0.8)
    add_run(tmp_path / "b", 0.9)
    with pytest.raises(ValueError, match="are both nsm, 2 levels, seed 0: move one away"):
        find_runs([tmp_path])


def test_numbers_keep_their_digits() -> None:
    assert spread([10.5]) == "10.500"
    assert spread([0.25, None]) == ".250"
    assert spread([None]) == "-"


def test_a_folder_of_triples_is_told_by_its_name(tmp_path: Path) -> None:
    add_run(tmp_path / "run", 0.8, "domain.path=../shared/data/codex-s", "domain.negatives=2")
    (run,) = find_runs([tmp_path])
    assert run["name"] == "nsm, 2 levels, codex-s, domain.negatives=2"
