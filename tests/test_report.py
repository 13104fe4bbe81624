"""The report: what is found on disk, how runs are grouped, what is said of them, and how the page looks."""

import csv
import html
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from nsm.report import main
from nsm.reporting import charts, page, text
from nsm.reporting.records import find_runs
from nsm.reporting.summary import Summary, summarise
from tests.browser import browser, screenshots

EPOCHS = [
    {"epoch": number, "val/loss": 1 / number, "val/accuracy": 0.7 + number / 100, "val/cycle_loss": 0.5, "lr": 1e-3}
    for number in (1, 2, 3)
]


def add_run(folder: Path, accuracy: float | None = 0.8, *overrides: str, seed: int = 0, **results: Any) -> Path:
    """Write a run's folder as training would; keys of ``results`` replace those of final_results.json."""
    run = {
        "status": "completed",
        "domain": "causal",
        "model": "nsm",
        "levels": 2,
        "seed": seed,
        "epochs": 3,
        "test": {"accuracy": accuracy, "accuracy_class_0": 0.7, "accuracy_class_1": 0.9, "cycle_error": 0.25},
        "majority": 0.6,
        "shortcuts": {"predicate_counts": 0.61, "handcrafted": 0.78 + seed / 100},
        "ceiling": 0.848,
        "ceiling_do": None,
        "collapsed": False,
        "parameters": 1234,
        "seconds": 10.0,
        "device": "cpu",
        "cost_usd": None,
    } | results
    (folder / ".hydra").mkdir(parents=True)
    (folder / "final_results.json").write_text(json.dumps(run))
    (folder / "training_history.json").write_text(json.dumps(EPOCHS))
    settings: dict[str, Any] = {"domain": {"size": 9}, "model": {"pool_ratio": 0.5, "dropout": 0.1}, "schedule": {}}
    for override in overrides:
        key, _, value = override.partition("=")
        group, _, name = key.partition(".")
        if name:
            settings[group][name] = float(value) if value.replace(".", "").isdigit() else value
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(settings | {"seed": seed}))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(["domain=causal", f"seed={seed}", *overrides]))
    return folder


def summary_of(*folders: Path) -> Summary:
    return summarise(find_runs(folders))


def test_mean_over_seeds_of_runs_that_differ_in_nothing_else(tmp_path: Path) -> None:
    values = [0.80, 0.84, 0.85]
    for seed, accuracy in enumerate(values):
        add_run(tmp_path / str(seed), accuracy, "hardware=cpu", f"domain.cache_dir={seed}", seed=seed)
    add_run(tmp_path / "control", 0.5, "domain.control=shuffled_labels")
    best, control = summary_of(tmp_path).configurations
    assert (best.name, best.seeds) == ("nsm, 2 levels", [0, 1, 2])
    assert best.score is not None
    assert (best.score.mean, best.score.deviation) == pytest.approx((mean(values), stdev(values)))
    assert best.score.count == 3
    assert control.name == "nsm, 2 levels, control=shuffled_labels"
    assert control.score is not None
    assert control.score.deviation is None
    assert best.verdict == ("good", "beats all shortcuts in 3 of 3 (+.040)")
    assert best.margins == pytest.approx([0.02, 0.05, 0.05])
    assert control.verdict == ("bad", "no better than a shortcut in 1 of 1 (-.280)")


def test_markdown_table_has_the_columns_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(tmp_path / "a", 0.80)
    add_run(tmp_path / "b", 0.84, seed=1)
    test = {"accuracy": 0.7, "accuracy_class_0": 0.7, "accuracy_class_1": 0.9, "cycle_error": 0.25, "mrr": None}
    add_run(tmp_path / "c", model="flat", levels=None, test=test)
    main([str(tmp_path), "--markdown", "--metrics", "accuracy", "cycle_error", "mrr"])
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "**causal**",
        "",
        "| model | seeds | accuracy | cycle_error | parameters | seconds |",
        "|---|---|---|---|---|---|",
        "| flat | 0 | .700 | .250 | 1,234 | 10 |",
        "| nsm, 2 levels | 0, 1 | .820 ± .028 | .250 ± .000 | 1,234 | 10 |",
        "",
        "To judge by: majority .600 ± .000, predicate_counts .610 ± .000, handcrafted .785 ± .007, "
        "ceiling .848 ± .000. Collapsed runs: 0 of 3.",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("acuracy", "did you mean accuracy"),
        ("zzz", "there are accuracy, accuracy_class_0, accuracy_class_1, "),
    ],
)
def test_metrics_that_no_run_has_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    add_run(tmp_path / "a", 0.80)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--markdown", "--metrics", "accuracy", name])
    output = capsys.readouterr()
    assert f"no run has a test figure {name}: {told}" in output.err
    assert not output.out


def test_hyperparameters_that_all_share_are_said_once(tmp_path: Path) -> None:
    for ratio in (0.3, 0.7):
        add_run(tmp_path / str(ratio), 0.8, "model.dropout=0.2", f"model.pool_ratio={ratio}")
    summary = summary_of(tmp_path)
    assert {c.choices for c in summary.configurations} == {"pool_ratio=0.3", "pool_ratio=0.7"}
    assert summary.common == {"causal": {"model.dropout": "0.2"}}
    assert "all of causal: model.dropout=0.2" in text.table(summary)


def test_runs_of_changed_defaults_are_not_averaged(tmp_path: Path) -> None:
    add_run(tmp_path / "a", 0.8)
    changed = add_run(tmp_path / "b", 0.9, seed=1) / ".hydra" / "config.yaml"
    changed.write_text(changed.read_text().replace('"dropout": 0.1', '"dropout": 0.2'))
    assert {c.choices for c in summary_of(tmp_path).configurations} == {"dropout=0.1", "dropout=0.2"}


def test_runs_on_other_data_are_not_compared(tmp_path: Path) -> None:
    for number, folder in enumerate(("my/people", "my/places", "my/people domain.inference_path=my/others")):
        paths = f"domain.path={folder}".split()
        add_run(tmp_path / str(number), 0.8, *paths, "model.dropout=0.2", domain="triples")
    summary = summary_of(tmp_path)
    assert summary.domains == ["triples people", "triples people others", "triples places"]
    assert {c.choices for c in summary.configurations} == {"dropout=0.2"}


def test_of_a_seed_that_ran_twice_the_newer_run_counts(tmp_path: Path) -> None:
    old, new = add_run(tmp_path / "b", 0.7), add_run(tmp_path / "a", 0.9)
    for path in (old, *old.iterdir()):
        os.utime(path, (1e9, 1e9))
    (configuration,) = summary_of(tmp_path).configurations
    assert [run.folder for run in configuration.runs] == [new]
    assert [run.folder for run in configuration.repeated] == [old]
    assert "1 of them was repeated later" in text.table(summary_of(tmp_path))


def spoil(folder: Path) -> None:
    """One run of every kind that can go wrong."""
    add_run(folder / "cut short", 0.8)
    path = folder / "cut short" / "final_results.json"
    path.write_text(path.read_text()[:100])
    add_run(folder / "a list")
    (folder / "a list" / "final_results.json").write_text("[]")
    add_run(folder / "running", seed=4)
    (folder / "running" / "final_results.json").unlink()
    nothing = dict.fromkeys(("domain", "model", "levels", "test", "majority", "shortcuts", "ceiling", "seconds"))
    add_run(folder / "empty", None, **nothing, collapsed=None, parameters=None, epochs=None)
    add_run(folder / "failed", None, status="failed", error="RuntimeError: out of memory\n  at line 3 <b>", test=None)
    add_run(folder / "stopped", None, status="interrupted", error=None, test={}, cost_usd=0.5)
    add_run(folder / "history", 0.7, "model.pool_ratio=0.9")
    (folder / "history" / "training_history.json").write_text("{")
    add_run(folder / "settings", 0.7, "model.pool_ratio=0.8")
    (folder / "settings" / ".hydra" / "config.yaml").write_text("a: [")
    (folder / "settings" / ".hydra" / "overrides.yaml").write_bytes(b"\xff\xfe")
    (folder / "crashed").mkdir()
    (folder / "crashed" / "error.ckpt").write_bytes(b"")
    (folder / "crashed" / "train.log").write_text("epoch 1\nValueError: nan\nthe end\n")
    (folder / "no run").mkdir()


def test_broken_and_half_written_runs_are_listed_and_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path)
    add_run(tmp_path / "good", 0.8)
    found = {run.folder.name: run for run in find_runs([tmp_path, tmp_path / "good"])}
    assert {name: run.status for name, run in found.items()} == {
        "cut short": "broken",
        "a list": "broken",
        "running": "unfinished",
        "empty": "completed",
        "failed": "failed",
        "stopped": "interrupted",
        "history": "completed",
        "settings": "completed",
        "crashed": "failed",
        "good": "completed",
    }
    assert "final_results.json is damaged" in str(found["cut short"].error)
    assert "it holds no dict" in str(found["a list"].error)
    assert (found["running"].epochs, found["running"].seed, found["running"].error) == (3, 4, None)
    assert found["crashed"].error == "ValueError: nan"
    assert "training_history.json is damaged" in str(found["history"].error)
    assert "overrides.yaml is damaged" in str(found["settings"].error)
    for form in ([], ["--csv"], ["--json"], ["--markdown"]):
        main([str(tmp_path), *form])
    told = capsys.readouterr().out
    assert "RuntimeError: out of memory" in told
    assert "10 runs: 5 completed" not in told
    shown = (tmp_path / "report.html").read_text()
    assert "RuntimeError: out of memory\n  at line 3 &lt;b&gt;" in shown
    assert "ValueError: nan" in shown


def test_csv_and_json_hold_every_run_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(tmp_path / "a", 0.8, "model.pool_ratio=0.3", cost_usd=0.25)
    add_run(tmp_path / "b", 0.9, "model.pool_ratio=0.7")
    main([str(tmp_path), "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["test.accuracy"], row["model.pool_ratio"], row["cost_usd"]) for row in rows] == [
        ("0.8", "0.3", "0.25"),
        ("0.9", "0.7", ""),
    ]
    main([str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [c["changed"] for c in told["configurations"]] == [{"model.pool_ratio": "0.7"}, {"model.pool_ratio": "0.3"}]
    assert told["configurations"][0]["figures"]["test.accuracy"] == {"mean": 0.9, "deviation": None, "count": 1}
    assert told["runs"][0]["shortcuts.handcrafted"] == 0.78
    assert not (tmp_path / "report.html").exists()


class Page(HTMLParser):
    """Tables as lists of rows of texts, and every address that the page would load or lead to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def sweep(folder: Path) -> None:
    """Two domains; a sweep of two hyperparameters and of levels over two seeds."""
    for seed in (0, 1):
        for ratio in (0.3, 0.5, 0.7):
            for dropout in (0.0, 0.2):
                name = f"{seed}-{ratio}-{dropout}"
                accuracy = 0.8 + ratio / 30 - dropout / 20 + seed / 100
                add_run(folder / name, accuracy, f"model.pool_ratio={ratio}", f"model.dropout={dropout}", seed=seed)
        levels = {"levels": 3, "test": {"accuracy": 0.83 - seed / 50, "cycle_error": 0.4}}
        add_run(folder / f"three-{seed}", None, "model.pool_ratio=0.3", "model.dropout=0.0", seed=seed, **levels)
        add_run(folder / f"other-{seed}", 0.95, seed=seed, domain="planning", ceiling=1.0, cost_usd=0.1)


def test_page_answers_first_whether_it_learned(tmp_path: Path) -> None:
    sweep(tmp_path)
    shown = Page(page.render(summary_of(tmp_path), folders=[tmp_path]))
    header, causal, planning = shown.rows[:3]
    assert header[:4] == ["domain", "best configuration", "accuracy", "majority"]
    best = [0.8 + 0.7 / 30 + seed / 100 for seed in (0, 1)]
    assert causal[0] == "causal"
    assert causal[1] == "nsm, 2 levels dropout=0.0, pool_ratio=0.7"
    assert causal[2] == f"{mean(best):.3f} ± {stdev(best):.3f}".replace("0.", ".")
    assert causal[4] == ".785 +.043 ± .000"
    assert causal[5] == f".848 -{0.848 - mean(best):.3f} ± .007".replace("0.", ".")
    assert "beats all shortcuts in 2 of 2" in causal[6]
    assert causal[6].endswith("class 0: .700 right")
    assert causal[7] == "nsm, 2 levels -.007 ± .000; dropout=0.0, pool_ratio=0.5"
    assert planning[0] == "planning"


def test_page_puts_levels_side_by_side(tmp_path: Path) -> None:
    sweep(tmp_path)
    rows = Page(page.render(summary_of(tmp_path), folders=[tmp_path])).rows
    two, three = (next(row for row in rows if row[0] == f"{levels} levels") for levels in (2, 3))
    gains = [0.83 - seed / 50 - (0.8 + 0.3 / 30 + seed / 100) for seed in (0, 1)]
    assert two[2] == "-"
    assert three[2] == f"{mean(gains):+.3f} ± {stdev(gains):.3f}".replace("0.", ".")
    assert three[3] == ".400 ± .000"


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    sweep(tmp_path)
    source = page.render(summary_of(tmp_path), folders=[tmp_path], base=tmp_path)
    inside = [address for address in Page(source).addresses if not address.startswith(("#", "data:"))]
    assert inside
    for address in inside:
        assert (tmp_path / address).is_dir()
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|<link(?! rel=\"icon\" href=\"data:)", source)


def test_a_run_that_did_not_end_is_shown_with_the_command_that_continues_it(tmp_path: Path) -> None:
    add_run(tmp_path / "done", 0.8, "schedule=smoke", test={"accuracy": 0.8, "mrr": 0.25})
    stopped = add_run(tmp_path / "a b", None, "model.dropout=0.2", status="interrupted", error=None, test=None)
    told = text.table(summary_of(tmp_path))
    assert re.search(r"nsm, 2 levels +1 interrupted +- +- .* dropout=0.2", told)
    assert re.search(r"nsm, 2 levels +0 +\.800 +\.250 ", told)
    command = f"python -m nsm.train domain=causal seed=0 model.dropout=0.2 hydra.mode=RUN 'hydra.run.dir={stopped}'"
    assert f"to continue: {command}" in told
    shown = page.render(summary_of(tmp_path), folders=[tmp_path])
    assert command in html.unescape(shown)
    assert "no result: 1 interrupted" in shown
    assert "validation accuracy .730 so far" in shown
    (row,) = (row for row in Page(shown).rows if row[0] == "a b")
    assert "model.dropout=0.2" in row


def test_runs_that_never_began_are_no_configurations(tmp_path: Path) -> None:
    add_run(tmp_path / "done", 0.8)
    for name, overrides in (("a", ["domain.path=nowhere"]), ("b", ["model.dropout=0.2"]), ("c", [])):
        folder = add_run(tmp_path / name, None, *overrides, status="failed", error="ConfigError: no folder", test=None)
        (folder / "training_history.json").unlink()
    add_run(tmp_path / "diverged", None, "model.dropout=0.9", status="failed", error="RunError: nan", test=None)
    summary = summary_of(tmp_path)
    assert summary.domains == ["causal"]
    assert [(c.choices, c.outcomes) for c in summary.configurations] == [("", "1 failed"), ("dropout=0.9", "1 failed")]
    rows = Page(page.render(summary, folders=[tmp_path])).rows
    assert [row[0] for row in rows].count("nsm, 2 levels dropout=0.2") == 0
    assert text.table(summary).count("ConfigError: no folder") == 3


def marks(chart: str) -> list[str]:
    """Texts of a chart."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", chart)


def test_one_diverged_run_does_not_flatten_the_others(tmp_path: Path) -> None:
    for number in range(3):
        add_run(tmp_path / str(number), 0.8, f"model.dropout=0.{number}")
    loss, accuracy, _ = charts.curves(list(enumerate(summary_of(tmp_path).configurations)))
    assert "validation loss" in marks(loss)
    assert "validation accuracy at P &gt; .5" in marks(accuracy)
    (tmp_path / "2" / "training_history.json").write_text(json.dumps([{"epoch": 1, "val/loss": 1.4e6}]))
    loss = charts.curves(list(enumerate(summary_of(tmp_path).configurations)))[0]
    assert "validation loss (logarithmic)" in marks(loss)


def test_what_has_no_result_is_dashed_and_crossed_out(tmp_path: Path) -> None:
    for number in (1, 2):
        add_run(tmp_path / str(number), 0.8, f"model.dropout=0.{number}")
    whole = page.render(summary_of(tmp_path), folders=[tmp_path])
    assert "stroke-dasharray" not in "".join(charts.curves(list(enumerate(summary_of(tmp_path).configurations))))
    add_run(tmp_path / "stopped", None, "model.dropout=0.3", status="interrupted", test=None)
    add_run(tmp_path / "failed", None, "model.dropout=0.4", status="failed", error="RunError: nan", test=None)
    summary = summary_of(tmp_path)
    curves = charts.curves(list(enumerate(summary.configurations)))
    assert [chart.count("stroke-dasharray") for chart in curves] == [2, 2, 2]
    (chart,) = charts.slices(summary.configurations)
    assert {"0.1", "0.2", "0.3", "0.4"} <= set(marks(chart))
    shown = page.render(summary, folders=[tmp_path])
    assert "Crosses: no result so far" in shown
    assert "Crosses" not in whole
    assert shown.count("dashed: 1 run that did not end") == 2
    for seed in range(8):
        add_run(tmp_path / f"more-{seed}", 0.8, f"model.dropout=0.5{seed}")
    assert "dashed: 1 run that did not end" in page.render(summary_of(tmp_path), folders=[tmp_path])


def test_verdicts_of_what_did_not_work(tmp_path: Path) -> None:
    add_run(tmp_path / "a", 0.6, collapsed=True)
    add_run(tmp_path / "b", 0.78, seed=1)
    add_run(tmp_path / "c", 0.9, domain="kg", shortcuts={})
    add_run(tmp_path / "d", None, domain="regression", test={"r2": 0.9, "mse": 0.1}, majority=None, shortcuts={})
    first, second, third = summary_of(tmp_path).configurations
    assert first.verdict == ("bad", "collapsed in 1 of 2")
    assert second.verdict[0] == "none"
    assert third.score_name == "r2"
    assert ".900 r2" in text.table(summary_of(tmp_path))
    shown = page.render(summary_of(tmp_path), folders=[tmp_path])
    assert "collapsed in 1 of 2" in shown
    assert ".900 r²" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder nowhere"),
        (["{folder}"], "no runs beneath"),
        (["{folder}", "--watch", "0"], "above 0"),
        (["{folder}", "--watch", "1", "--csv"], "--watch repeats the table"),
        (["{folder}", "--metrics", "accuracy"], "--markdown"),
    ],
)
def test_what_cannot_be_reported_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main([argument.format(folder=tmp_path) for argument in arguments])
    assert message in capsys.readouterr().err


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    for seed in range(40):
        add_run(tmp_path / str(seed), seed=seed)
    command = f"{shlex.quote(sys.executable)} -m nsm.report {shlex.quote(str(tmp_path))} --json | head -n 1"
    root = Path(__file__).parent.parent
    told = subprocess.run(command, shell=True, cwd=root, capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("{\n", "")


def test_watching_shows_what_a_running_sweep_adds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nsm.report", str(tmp_path), "--watch", "0.2"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        try:
            for number, expected in enumerate(("1 run: 1 completed", "2 runs: 2 completed")):
                add_run(tmp_path / str(number), 0.8, seed=number)
                lines = itertools.islice(process.stdout, 1000)
                assert any(line.startswith(expected) for line in lines)
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    assert '<meta http-equiv="refresh" content="1">' in (tmp_path / "report.html").read_text()


def test_five_hundred_runs_take_seconds(tmp_path: Path) -> None:
    """Bounded by what it does, not by the clock: no more charts, curves and rows than for fifty runs."""
    for number in range(500):
        add_run(tmp_path / str(number), 0.8, f"model.dropout={number // 2 / 1000}", seed=number % 2)
    shown = page.render(summary_of(tmp_path), folders=[tmp_path])
    assert shown.count("<figure>") < 20
    assert len(shown) < 3e6


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    sweep(tmp_path)
    spoil(tmp_path)
    main([str(tmp_path)])
    seen = screenshots((tmp_path / "report.html").as_uri(), tmp_path)
    assert set(seen) == {"light", "dark", "phone"}
    for name, view in seen.items():
        assert view.messages == [], name
        assert view.requests == [(tmp_path / "report.html").as_uri()], name
        assert view.scroll_width <= view.width, f"{name} is wider than its screen"
        assert view.image.stat().st_size > 50_000
    assert seen["light"].background != seen["dark"].background


def test_no_table_is_wider_than_a_small_window(tmp_path: Path) -> None:
    sweep(tmp_path)
    spoil(tmp_path)
    long = ["schedule.accumulate_batches=16", "schedule.early_stopping_patience=0.25"]
    for number in (1, 2):
        add_run(tmp_path / f"a-folder-with-a-long-name-{number}", 0.9, *long[:number], cost_usd=1.0, seed=7)
    main([str(tmp_path)])
    with browser() as opened:
        for width in (390, 1000, 1239, 1240, 1400):
            shown = opened.new_page(viewport={"width": width, "height": 900})
            shown.goto((tmp_path / "report.html").as_uri())
            wide = "tables => tables.filter(table => table.scrollWidth > table.clientWidth).length"
            assert shown.eval_on_selector_all(".scroll:has(.stack)", wide) == 0, width
            apart = "all => all.filter(pair => pair.getClientRects().length > 1 || pair.offsetHeight > 30).length"
            assert width < 1000 or shown.eval_on_selector_all(".stack .pair", apart) == 0, width
            shown.close()
