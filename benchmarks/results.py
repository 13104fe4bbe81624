"""``python -m benchmarks.results FOLDER``: the README's table, from the results of every run beneath a folder."""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

COLUMNS = {
    "causal": ("accuracy", "accuracy_do", "sqrt_pehe", "policy_value"),
    "planning": ("accuracy", "accuracy_long"),
    "kg": ("accuracy", "accuracy_composition_3", "auc_pr", "mrr", "hits_at_1"),
    "triples": ("accuracy", "accuracy_matched", "auc_pr", "mrr", "hits_at_10", "sampled_mrr"),
}
CYCLE = ("cycle_error", "cycle_error_shuffled", "cycle_error_structure_only", "cycle_error_within_types")
UNNAMED = ("domain=", "model=", "seed=", "hardware", "hydra", "domain.cache_dir")


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table for each domain found beneath the folders."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    try:
        runs = find_runs(parser.parse_args(arguments).folders)
    except ValueError as error:
        parser.error(str(error))
    if not runs:
        parser.error("no final_results.json beneath the folders named")
    print("\n\n".join(domain_table(domain, runs) for domain in sorted({run["domain"] for run in runs})))


def find_runs(folders: list[Path]) -> list[dict[str, Any]]:
    """The results of every completed run beneath ``folders``, each with a ``name`` that says how it differs.

    Raises:
        ValueError: if two runs of the same domain, name and seed are found, since their mean would mean nothing.
    """
    runs: dict[tuple[str, str, int], Path] = {}
    found = []
    for path in (path for folder in folders for path in sorted(folder.rglob("final_results.json"))):
        run = json.loads(path.read_text())
        overrides = OmegaConf.load(path.parent / ".hydra" / "overrides.yaml")
        set_by_hand = [shown(str(override)) for override in overrides if not str(override).startswith(UNNAMED)]
        levels = [f"{run['levels']} levels"] if run["levels"] else []
        run["name"] = ", ".join([run["model"], *levels, *set_by_hand])
        key = (run["domain"], run["name"], run["seed"])
        if key in runs:
            raise ValueError(f"{runs[key]} and {path} are both {run['name']}, seed {run['seed']}: move one away")
        runs[key] = path
        found.append(run)
    return found


def shown(override: str) -> str:
    """The override, or of the folder that one's own triples are read from its name alone."""
    key, _, value = override.partition("=")
    return Path(value).name if key in ("domain.path", "domain.inference_path") else override


def domain_table(domain: str, runs: list[dict[str, Any]]) -> str:
    """One row a model: mean and standard deviation over the seeds; below it, what the figures are to be judged by."""
    mine = [run for run in runs if run["domain"] == domain]
    groups = defaultdict(list)
    for run in mine:
        groups[run["name"]].append(run)
    columns = (*COLUMNS.get(domain, ("accuracy",)), *CYCLE)
    header = ["model", "seeds", *columns, "parameters", "seconds"]
    lines = [f"**{domain}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, group in sorted(groups.items()):
        cells = [spread([run["test"].get(column) for run in group]) for column in columns]
        seeds = ", ".join(str(run["seed"]) for run in sorted(group, key=lambda run: run["seed"]))
        seconds = f"{mean(run['seconds'] for run in group):.0f}"
        lines.append("| " + " | ".join([name, seeds, *cells, f"{group[0]['parameters']:,}", seconds]) + " |")
    by_seed = list({run["seed"]: run for run in mine}.values())
    judges = {"majority": [run["majority"] for run in by_seed]}
    judges |= {name: [run["shortcuts"][name] for run in by_seed] for name in by_seed[0]["shortcuts"]}
    judges |= {key: [run[key] for run in by_seed] for key in ("ceiling", "ceiling_do")}
    found = [f"{name} {spread(values)}" for name, values in judges.items() if None not in values]
    collapsed = sum(run["collapsed"] for run in mine)
    return "\n".join([*lines, "", f"To judge by: {', '.join(found)}. Collapsed runs: {collapsed} of {len(mine)}."])


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation, as ``.847 ± .006``; a dash where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {stdev(known):.3f}" if len(known) > 1 else ""
    return re.sub(r"\b0\.", ".", f"{mean(known):.3f}{deviation}")


if __name__ == "__main__":
    main()
