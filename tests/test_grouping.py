"""Which runs the report holds to be the same, and what it calls those that are not."""

import json
from pathlib import Path
from typing import Any

import yaml

from nsm.reporting.records import find_runs
from nsm.reporting.summary import Summary, summarise

DEFAULTS: dict[str, Any] = {
    "domain_defaults.pool_ratio": 0.5,
    "domain.num_worlds": 400,
    "domain.strict": True,
    "domain.num_workers": "${hardware.num_workers}",
    "model.pool_ratio": "${domain_defaults.pool_ratio}",
    "model.dropout": 0.1,
    "schedule.max_epochs": 6,
    "schedule.limit_batches": None,
    "schedule.probe_steps": 300,
    "schedule.checkpoint_every_epochs": 10,
    "hardware.num_workers": 0,
}
SMOKE = {
    "schedule.max_epochs": 2,
    "schedule.limit_batches": 4,
    "schedule.probe_steps": 4,
    "schedule.checkpoint_every_epochs": 1,
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, name = key.partition(".")
        whole.setdefault(group, {})[name] = value
    return whole


def add(root: Path, *overrides: str, seed: int = 0, model: str = "nsm", lacking: tuple[str, ...] = ()) -> Path:
    """A completed run of these overrides, composed as Hydra would, by code that lacked some settings."""
    settings = DEFAULTS | (SMOKE if "schedule=smoke" in overrides else {})
    for override in overrides:
        key, _, value = override.partition("=")
        if key in settings:
            settings = settings | {key: yaml.safe_load(value)}
    settings = {
        key: value
        for key, value in settings.items()
        if key not in lacking and not (model == "flat" and key == "model.pool_ratio")
    }
    folder = root / str(len(list(root.glob("*"))))
    (folder / ".hydra").mkdir(parents=True)
    results = {"status": "completed", "domain": "kg", "model": model, "seed": seed, "test": {"accuracy": 0.7}}
    (folder / "final_results.json").write_text(json.dumps(results))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(nested(settings) | {"seed": seed}))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"seed={seed}"]))
    return folder


def grouped(root: Path) -> dict[str, list[int]]:
    """Seeds by name; a name that two configurations share would lose one of them."""
    summary = summary_of(root)
    found = {configuration.name: configuration.seeds for configuration in summary.configurations}
    assert len(found) == len(summary.configurations)
    return found


def summary_of(root: Path) -> Summary:
    return summarise(find_runs([root]))


def test_a_default_that_is_given_is_still_the_default(tmp_path: Path) -> None:
    add(tmp_path, seed=0)
    add(tmp_path, "model.pool_ratio=0.5", "schedule=production", "domain.strict=true", seed=1)
    assert grouped(tmp_path) == {"nsm": [0, 1]}
    add(tmp_path, "model.pool_ratio=0.30", seed=0)
    add(tmp_path, "domain_defaults.pool_ratio=0.3", seed=1)
    add(tmp_path, "domain.num_workers=3", "hardware.num_workers=3", "schedule.checkpoint_every_epochs=1", seed=2)
    assert grouped(tmp_path) == {"nsm, pool_ratio=0.5": [0, 1, 2], "nsm, pool_ratio=0.3": [0, 1]}


def test_a_schedule_stands_for_what_it_sets(tmp_path: Path) -> None:
    add(tmp_path)
    add(tmp_path, "schedule=smoke")
    add(tmp_path, "schedule=smoke", "schedule.limit_batches=60", "model.dropout=0.2")
    add(tmp_path, "schedule=smoke", model="flat")
    assert grouped(tmp_path) == {
        "nsm": [0],
        "nsm, schedule=smoke": [0],
        "nsm, dropout=0.2, schedule=smoke, limit_batches=60": [0],
        "flat, schedule=smoke": [0],
    }


def test_what_all_have_is_said_once_even_where_a_model_cannot_have_it(tmp_path: Path) -> None:
    add(tmp_path, "schedule=smoke", "model.pool_ratio=0.3", "domain.strict=False")
    add(tmp_path, "schedule=smoke", "model.pool_ratio=0.3", "domain.strict=false", "model.dropout=0.2")
    add(tmp_path, "schedule=smoke", "domain.strict=no", model="flat")
    assert grouped(tmp_path) == {"nsm": [0], "nsm, dropout=0.2": [0], "flat": [0]}
    common = {"domain.strict": "false", "model.pool_ratio": "0.3", "schedule": "smoke"}
    assert summary_of(tmp_path).common == {"kg": common}


def test_settings_that_older_code_lacked_split_nothing(tmp_path: Path) -> None:
    add(tmp_path, seed=0, lacking=("domain.strict", "schedule.probe_steps"))
    add(tmp_path, seed=1)
    add(tmp_path, "schedule=smoke", seed=0)
    add(tmp_path, "schedule=smoke", seed=1, lacking=("schedule.probe_steps",))
    add(tmp_path, "domain.strict=false", seed=2)
    assert grouped(tmp_path) == {"nsm": [0, 1], "nsm, schedule=smoke": [0, 1], "nsm, strict=false": [2]}


def test_defaults_that_changed_are_told_apart(tmp_path: Path) -> None:
    add(tmp_path, seed=0)
    path = add(tmp_path, seed=1) / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("probe_steps: 300", "probe_steps: 200"))
    assert grouped(tmp_path) == {"nsm, probe_steps=300": [0], "nsm, probe_steps=200": [1]}


def test_unreadable_settings_leave_what_was_given(tmp_path: Path) -> None:
    add(tmp_path, "model.dropout=0.2", seed=0)
    for seed, overrides in enumerate((["model.dropout=0.2"], ["model.dropout=0.3"], ["model.dropout=0.3"]), start=1):
        (add(tmp_path, *overrides, seed=seed) / ".hydra" / "config.yaml").write_text("a: [")
    assert grouped(tmp_path) == {"nsm, dropout=0.2": [0, 1], "nsm, dropout=0.3": [2, 3]}


def test_what_yaml_makes_of_a_value_stops_nothing(tmp_path: Path) -> None:
    for day in (1, 2):
        path = add(tmp_path, seed=day) / ".hydra" / "config.yaml"
        path.write_text(path.read_text().replace("num_worlds: 400", f"num_worlds: 2026-11-0{day}"))
    assert grouped(tmp_path) == {"nsm, num_worlds=2026-11-01": [1], "nsm, num_worlds=2026-11-02": [2]}


def test_references_are_followed(tmp_path: Path) -> None:
    path = add(tmp_path) / ".hydra" / "config.yaml"
    (plain,) = find_runs([tmp_path])
    assert plain.settings["model.pool_ratio"] == 0.5
    path.write_text(path.read_text().replace("num_worlds: 400", "num_worlds: '${domain_defaults.pool_ratio} of 400'"))
    (within,) = find_runs([tmp_path])
    assert within.settings == plain.settings | {"domain.num_worlds": "0.5 of 400"}
    path.write_text(path.read_text().replace("${domain_defaults.pool_ratio} of", "${nowhere} of"))
    (broken,) = find_runs([tmp_path])
    assert broken.settings["domain.num_worlds"] == "${nowhere} of 400"
