"""Runs that must fail to learn: with what could be learned destroyed, the whole pipeline ends at the majority."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from nsm.train import CONF, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("process_state")]
SIZES = {
    "causal": ["domain.num_scenarios=14000", "schedule.max_epochs=2"],
    "planning": ["domain.num_problems=4500", "domain.long_problems=10", "schedule.max_epochs=3"],
    "kg": ["domain.num_worlds=130", "domain.ranking_queries=4", "schedule.max_epochs=4", "schedule.batch_size=32"],
}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def results_of(domain: str, folder: Path, cache_dir: Path, *overrides: str) -> dict[str, Any]:
    fixed = [f"domain={domain}", f"domain.cache_dir={cache_dir}", "hardware=cpu", "hardware.threads=1", "seed=0"]
    few = [*SIZES[domain], "schedule.probe_steps=5"]
    with initialize_config_dir(CONF, version_base="1.3"):
        train(compose("train", overrides=[*fixed, *few, *overrides]), folder)
    return json.loads((folder / "final_results.json").read_text())


@pytest.mark.parametrize("domain", SIZES)
@pytest.mark.parametrize("control", ["shuffled_labels", "rewired_edges"])
def test_nothing_is_learned_where_nothing_is_to_be_learned(
    domain: str, control: str, tmp_path: Path, cache_dir: Path
) -> None:
    results = results_of(domain, tmp_path, cache_dir, f"domain.control={control}")
    assert results["test"]["accuracy"] <= results["majority"] + 0.03
    assert results["shortcuts"] == {}
    assert results["ceiling"] is None


@pytest.mark.parametrize("domain", SIZES)
def test_the_same_run_learns_where_something_is(domain: str, tmp_path: Path, cache_dir: Path) -> None:
    results = results_of(domain, tmp_path, cache_dir)
    assert results["test"]["accuracy"] > results["majority"] + 0.1
    assert 2 * results["test"]["cycle_error"] < results["test"]["cycle_error_shuffled"]
