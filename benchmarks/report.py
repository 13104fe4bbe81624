"""The measurements as text."""

from typing import Any

from benchmarks.layers import CHANNELS, OURS, OURS_ANEW

DOMAIN_ROWS = (
    ("training, graphs/s", "train_graphs_per_second", ",.0f"),
    ("inference, graphs/s", "predict_graphs_per_second", ",.0f"),
    ("generation, samples/s of one core", "generated_per_second", ",.0f"),
    ("training step, ms", "step_ms", ".1f"),
    ("  the same with its parts timed, ms", "watched_step_ms", ".1f"),
    ("matrix products of a step", "products", ",d"),
    ("  GFLOP", "products_gflop", ".2f"),
    ("  alone, ms", "products_ms", ".1f"),
    ("step / its products alone", "step_per_products", ".1f"),
)
GRAPH_ROWS = (
    ("  a sample cut out, ms", "cut_ms", 1, ".2f"),
    ("  a sample trained on, ms", "train_ms", 1, ".2f"),
    ("  loading, s", "load_seconds", 1, ".1f"),
    ("  loading again, s", "load_again_seconds", 1, ".1f"),
    ("  peak memory, GiB", "peak_memory_bytes", 2**30, ".2f"),
)


def format_report(report: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    machine = report["machine"]
    text = [
        f"torch {machine['torch']}, torch-geometric {machine['torch_geometric']}, {machine['cpu']}, "
        f"{machine['threads']} threads, {machine['gpu'] or 'no GPU'}",
        f"medians of {report['rounds']} rounds; {report['share'] or 'the least'} of the default data",
    ]
    if report["domains"]:
        text += ["", *format_domains(report["domains"])]
    return "\n".join([*text, "", *format_layers(report["layers"]), "", *format_graphs(report["graphs"])])


def format_domains(domains: dict[str, dict[str, Any]]) -> list[str]:
    """One column a domain."""
    rows = [["", *domains]]
    rows += [[label, *(format(found[key], style) for found in domains.values())] for label, key, style in DOMAIN_ROWS]
    rows += [["share of a training step"]]
    parts = next(iter(domains.values()))["shares"]
    rows += [[f"  {part}", *(f"{found['shares'][part]:.1%}" for found in domains.values())] for part in parts]
    return align(rows)


def format_layers(layers: list[dict[str, Any]]) -> list[str]:
    """One block a shape: times and ratios, the latter with their quartiles."""
    lines = [f"relational layer, forward and backward, {CHANNELS} wide"]
    for found in layers:
        nodes, triples, relations, bases = (f"{number:d}" for number in found["shape"].values())
        rows = [
            [
                f"{nodes} nodes/{triples} triples/{relations} relations/{bases} bases",
                "ms",
                f"/ {OURS}",
                f"/ {OURS_ANEW}",
            ]
        ]
        for name, layer in found["layers"].items():
            ratios = [layer["ratios"].get(ours) for ours in (OURS, OURS_ANEW)]
            cells = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" if r else "" for r in ratios]
            rows.append([f"  {name}", f"{layer['ms']:.2f}", *cells])
        lines += align(rows)
    return lines


def format_graphs(graphs: list[dict[str, Any]]) -> list[str]:
    """One column a size of graph."""
    rows = [["triples of one's own", *(f"{found['triples']:,}" for found in graphs)]]
    rows += [[label, *(format(found[key] / unit, style) for found in graphs)] for label, key, unit, style in GRAPH_ROWS]
    return align(rows)


def align(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
