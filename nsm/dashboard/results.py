"""What runs have left: checkpoints, their evaluation, how they compare, and a file to take away."""

import os
import zipfile
from collections import defaultdict
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from IPython.display import HTML, IFrame, Image, display

from nsm import checkpoints as files
from nsm.config import ConfigError
from nsm.dashboard.plan import Plan
from nsm.dashboard.tables import Table, preformatted, size
from nsm.evaluate import evaluate as evaluate_run
from nsm.evaluate import format_evaluation
from nsm.figures import PALETTE
from nsm.reporting import charts, page, text
from nsm.reporting.configuration import Configuration
from nsm.reporting.records import find_runs, read_run
from nsm.reporting.summary import Summary, summarise
from nsm.restore import Restored, read_checkpoint, restore

LIGHT = "background:#fff;color:#1d2530;--ink:#1d2530;--line:#dde2e8;--other:#9aa3ad;--paper:#fff;" + "".join(
    f"--c{number}:{colour};" for number, colour in enumerate(PALETTE)
)
"""Colours of the report's charts outside its page."""
EXPORTED = ("*.json", "*.png", "*.log", ".hydra/*.yaml", files.BEST, "tensorboard/*", "csv/**/*.csv")
"""Files of a run that are exported: not the checkpoints that only continuing needs."""


def checkpoints(folder: Path) -> Table:
    """Every checkpoint of a run: epoch, metrics, size, and whether it is sound."""
    history = {row.get("epoch"): row for row in read_run(folder).history} if folder.is_dir() else {}
    rows = []
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime):
        try:
            epoch = int(read_checkpoint(path).get("epoch", -1)) + 1
            row = history.get(epoch, {})
            told = [epoch, *(_figure(row.get(f"val/{name}")) for name in ("loss", "accuracy", "cycle_loss"))]
        except ConfigError as error:
            told = [str(error).partition(" is ")[2], "", "", ""]
        written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        rows.append((path.name, *told, size(path.stat().st_size), written))
    header = ("checkpoint", "epoch", "val loss", "val accuracy", "val cycle loss", "size", "written")
    return Table(header, rows, "" if rows else f"{folder} has no checkpoint yet")


def load(folder: Path, checkpoint: str = "best") -> Restored:
    """Build the run anew with a checkpoint's weights, and say what was loaded.

    Raises:
        ConfigError: if it cannot be used, naming another that the run has.
    """
    try:
        restored = restore(folder, checkpoint)
    except ConfigError as error:
        others = {path.stem: path.name for path in folder.glob("*.ckpt")}
        others.pop(Path(files.BEST if checkpoint == "best" else checkpoint).stem, None)
        hint = "".join(f'; CHECKPOINT = "{name}" looks at that' for name in sorted(others.values())[:1])
        raise ConfigError(f"{error}{hint}") from error
    count = sum(parameter.numel() for parameter in restored.module.parameters())
    told = f"{restored.checkpoint} of epoch {restored.epoch}: {restored.datamodule.name}, {count:,} parameters"
    display(HTML(f"loaded <code>{escape(told)}</code>"))
    return restored


def evaluate(folder: Path, checkpoint: str = "best", split: str = "test") -> dict[str, Any]:
    """Score a checkpoint, show the table and the pictures."""
    result = evaluate_run(folder, split, checkpoint)
    display(preformatted(format_evaluation(result)))
    for path in sorted(folder.glob(f"evaluation_{split}_*.png")):
        display(Image(path.read_bytes()))
    return result


def compare(outputs: Path) -> None:
    """All runs beneath a folder: how far each domain's best models come, what a sweep varied, the report's table."""
    summary = summarise(find_runs([outputs]))
    chart = charts.comparison(summary)
    if chart is not None:
        display(HTML(f'<div style="{LIGHT} max-width:560px">{chart}</div>'))
    for name, group in alike(summary).items():
        for chart in charts.slices(group):
            display(HTML(f'<div style="{LIGHT} max-width:560px"><b>{escape(name)}</b>{chart}</div>'))
    display(preformatted(text.table(summary)))


def alike(summary: Summary) -> dict[str, list[Configuration]]:
    """Configurations of the same domain and model that have a score, which are compared by what varies."""
    groups: dict[str, list[Configuration]] = defaultdict(list)
    for configuration in summary.configurations:
        if configuration.score:
            groups[f"{configuration.domain}, {configuration.kind}"].append(configuration)
    return groups


def export(plan: Plan) -> Path:
    """Pack the run's results and best model, and the report of all runs, into one file; return its path."""
    summary = summarise(find_runs([plan.outputs]))
    folder = plan.outputs / "exports"
    folder.mkdir(exist_ok=True)
    target = folder / f"{plan.folder.parent.name}_{plan.folder.name}.zip"
    report = plan.outputs / "report.html"
    page.write(summary, report, folders=[plan.outputs])
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(report, report.name)
        archive.writestr("runs.csv", text.as_csv(summary))
        for path in sorted({path for pattern in EXPORTED for path in plan.folder.glob(pattern) if path.is_file()}):
            archive.write(path, Path("run") / path.relative_to(plan.folder))
        packed = [(info.filename, size(info.file_size)) for info in archive.infolist()]
    display(Table(("file", "size"), packed, f"{target}, {size(target.stat().st_size)}"))
    return target


def tensorboard(outputs: Path) -> None:
    """TensorBoard of all runs, in the notebook; it ends with the kernel.

    Where the notebook is reached through a proxy, ``TENSORBOARD_PROXY_URL`` says how (``/proxy/%PORT%/``).
    """
    from tensorboard.program import TensorBoard  # here, since it loads much and warns of its own

    board = TensorBoard()
    board.configure(argv=["tensorboard", "--logdir", str(outputs), "--port", "0", "--load_fast", "false"])
    address = board.launch()
    port = str(urlsplit(address).port)
    through = os.environ.get("TENSORBOARD_PROXY_URL")
    display(IFrame(through.replace("%PORT%", port) if through else address, width="100%", height=800))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
