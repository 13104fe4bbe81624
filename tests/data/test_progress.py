"""Slow work on data tells how far it is, now and then."""

import logging

import pytest

from nsm.data import progress


def test_a_line_every_fifteen_seconds(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    worlds = progress.Progress("generating kg", 4000, "worlds")
    for count in range(0, 4001, 1000):  # each takes ten seconds
        worlds.reached(count)
        now += 10
    assert caplog.messages == ["generating kg: 2,000 of 4,000 worlds"]
