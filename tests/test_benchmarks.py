"""The meter: does it measure what it says? Nothing here depends on how fast anything is."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.__main__ import main
from benchmarks.layers import OURS_ANEW, QUICK_SHAPES, check_equal, contestants
from benchmarks.meter import PARTS
from benchmarks.products import ProductRecorder, multiply
from benchmarks.stopwatch import OTHER, Stopwatch


@pytest.mark.usefixtures("process_state")
def test_a_quick_run_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--quick", "--domains", "kg", "--threads", "1", "--json", "bench.json"])
    report = json.loads(Path("bench.json").read_text())
    measured = report["domains"]["kg"]
    shares = measured.pop("shares")
    assert shares.keys() == {*PARTS, OTHER}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[part] > 0 for part in PARTS)
    (graph,) = report["graphs"]
    assert graph["train_ms"] > graph["cut_ms"]
    numbers = [*measured.values(), *graph.values()]
    (layers,) = (found["layers"] for found in report["layers"])
    for layer in layers.values():
        numbers += [layer["ms"], *(number for ratio in layer["ratios"].values() for number in ratio.values())]
    assert len(numbers) == len(measured) + len(graph) + 4 + 3 * (1 + 2 + 2)
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in (*shares, *layers))


def test_stopwatch_counts_inner_parts_once_and_all_time() -> None:
    class Work:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.05)

    work, stopwatch = Work(), Stopwatch("cpu")
    with stopwatch.watch([(work, "outer", "outer"), (work, "inner", "inner")]):
        start = time.perf_counter()
        stopwatch.start()
        work.outer()
        time.sleep(0.01)
        seconds = stopwatch.stop()
        total = time.perf_counter() - start
        work.outer()  # no longer counted
    assert not vars(work)
    assert seconds["outer"] >= 0.02
    assert seconds["inner"] >= 0.05
    assert seconds[OTHER] >= 0.01
    assert sum(seconds.values()) <= total
    assert sum(seconds.values()) == pytest.approx(total, rel=0.1)


def test_recorder_finds_the_products_of_forward_and_backward() -> None:
    linear, x = nn.Linear(4, 8), torch.randn(11, 4, requires_grad=True)
    groups, offsets = torch.randn(3, 8, 12, requires_grad=True), torch.tensor([4, 4, 11], dtype=torch.int32)
    recorder = ProductRecorder()
    with recorder:
        nn.functional.grouped_mm(linear(x), groups, offs=offsets).square().sum().backward()
    forward = [2 * 11 * 4 * 8, 2 * 11 * 8 * 12]
    assert sorted(product.flops for product in recorder.products) == sorted(3 * forward)  # backward: for each factor
    with ProductRecorder() as again:
        multiply(recorder.products)
    assert [product.flops for product in again.products] == [product.flops for product in recorder.products]


@pytest.mark.parametrize("quantity", ["output", "bases"])
def test_unequal_contestants_are_refused(quantity: str) -> None:
    layers = contestants(QUICK_SHAPES[0], "cpu")
    check_equal(layers)
    honest = layers[OURS_ANEW]

    def altered() -> dict[str, Tensor]:
        found: dict[str, Any] = honest()
        return found | {quantity: found[quantity] * 1.001}

    with pytest.raises(ValueError, match=f"{OURS_ANEW} computes something else.*{quantity}"):
        check_equal(layers | {OURS_ANEW: altered})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--domains", "chess"], "choose from causal, kg, planning"),
        (["--rounds", "0"], "--rounds: 0 must be at least 1"),
        (["--share", "0"], "--share: 0 must be above 0"),
        (["--threads", "many"], "--threads: invalid whole value: 'many'"),
        (["--json", "missing/bench.json"], "there is no folder missing"),
    ],
)
def test_wrong_options_stop_before_anything_is_measured(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err.replace("'causal', 'kg', 'planning'", "causal, kg, planning")
    assert not list(tmp_path.iterdir())
