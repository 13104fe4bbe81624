"""``python -m benchmarks.results FOLDER``: the README's table, from the results of every run beneath a folder."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

COLUMNS = {
    "causal": ("accuracy", "accuracy_do", "sqrt_pehe", "policy_value"),
    "planning": ("accuracy", "accuracy_long"),
    "kg": ("accuracy", "accuracy_composition_3", "auc_pr", "mrr", "hits_at_1"),
}
CYCLE = ("cycle_error", "cycle_error_shuffled", "cycle_error_structure_only")


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table for each domain found beneath the folders."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    runs = find_runs(parser.parse_args(arguments).folders)
    if not runs:
        parser.error("no final_results.json beneath the folders named")
    print("\n\n".join(domain_table(domain, runs) for domain in sorted({run["domain"] for run in runs})))


def find_runs(folders: list[Path]) -> list[dict[str, Any]]:
    """The results of every completed run beneath ``folders``."""
    return [json.loads(path.read_text()) for folder in folders for path in sorted(folder.rglob("final_results.json"))]


def domain_table(domain: str, runs: list[dict[str, Any]]) -> str:
    """One row a model: mean and standard deviation over the seeds; below it, what the figures are to be judged by."""
    mine = [run for run in runs if run["domain"] == domain]
    groups = defaultdict(list)
    for run in mine:
        groups[f"{run['model']}, {run['levels']} levels" if run["levels"] else run["model"]].append(run)
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
    return f"{mean(known):.3f}{deviation}".replace("0.", ".")


if __name__ == "__main__":
    main()
