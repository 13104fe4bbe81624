"""The run folder: files written whole, facts about the machine, the table that ends a run."""

import json
import re
import shutil
from pathlib import Path

import pytest

from nsm import runs
from nsm.config import ConfigError


def test_json_is_whole_and_has_only_what_json_has(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    runs.write_json(path, {"a": float("nan"), "b": [float("-inf"), 1.5], "c": None})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": None}
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == [None, 1.5]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(ConfigError, match=r"file/run cannot be written .*hydra\.run\.dir=")
    with refused, runs.writing(tmp_path / "file" / "run"):
        pass


def test_versions_name_what_decides_a_result() -> None:
    found = runs.versions()
    assert {"python", "nsm", "torch", "lightning", "torch-geometric"} <= found.keys()
    assert all(re.match(r"\d+\.", version) for version in found.values())


def test_commit_is_of_the_checkout_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") and (Path(runs.__file__).parent.parent / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", str(runs.git_commit()))
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    assert runs.git_commit() is None


def test_peak_memory_is_in_bytes() -> None:
    assert 20e6 < runs.peak_memory_bytes() < 1e12


def test_table_puts_the_accuracy_beside_what_it_is_judged_by() -> None:
    results = {
        "domain": "causal",
        "model": "nsm",
        "seed": 3,
        "epochs": 9,
        "best_epoch": 4,
        "seconds": 61.2,
        "majority": 0.6,
        "shortcuts": {"strong": 0.8, "weak": 0.61},
        "ceiling": 0.85,
        "test": {
            "accuracy": 0.83,
            "accuracy_class_0": 0.8,
            "accuracy_class_1": 0.9,
            "accuracy_do": 0.84,
            "cycle_error": None,
        },
    }
    lines = runs.format_table(results, {"test": 0.85, "do": 0.868}).splitlines()
    assert lines[0] == "causal, nsm, seed 3"
    assert [line.split() for line in lines[1:]] == [
        ["test", "accuracy", "0.830", "class", "0", "0.800,", "class", "1", "0.900"],
        ["majority", "0.600", "+0.230"],
        ["shortcut", "weak", "0.610", "+0.220"],
        ["shortcut", "strong", "0.800", "+0.030"],
        ["ceiling", "0.850", "-0.020"],
        ["test", "accuracy_do", "0.840", "ceiling", "0.868"],
        ["seconds", "61", "9", "epochs,", "best", "4"],
    ]
