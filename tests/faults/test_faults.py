"""A sample of what ``make test-faults`` tries in bulk."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.faults import bad_input, kills

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("process_state")]


def test_killed_runs_are_continued_exactly(tmp_path: Path) -> None:
    overrides = ["domain=causal", *kills.SHORT, *kills.SMALL["causal"]]
    counts = kills.try_domain("causal", overrides, 3, np.random.default_rng(0), tmp_path)
    assert counts["killed"] >= 3
    assert counts["bit-identical"] == counts["continued"] > 0
    assert counts["files half-written"] == counts["files lost"] == 0


def test_bad_input_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = bad_input.feed(30, seed=0, folder=tmp_path)
    total = sum(counted.values(), Counter[str]())
    assert total["succeeded"] > 0
    assert total["refused"] > 0
    assert not bad_input.wrong(counted), capsys.readouterr().out
