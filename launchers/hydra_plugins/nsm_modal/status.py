"""What a job says of itself on the volume: ``modal.json`` in its folder, rewritten at every commit.

It is how a client that comes later knows what is complete, and how an attempt knows of those before it.
"""

import json
import os
import traceback
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FILE = "modal.json"
RUNNING, COMPLETED, FAILED = "running", "completed", "failed"
PREEMPTED, TIMEOUT, CANCELLED, CRASHED = "preempted", "timeout", "cancelled", "crashed"


@dataclass
class Attempt:
    """One container's work on a job."""

    call: str
    """Modal's id of the call; its retries share it."""
    container: str
    gpu: str | None = None
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    seconds: float = 0.0
    """So far; of one that crashed, at its last commit."""
    usd: float = 0.0
    outcome: str = RUNNING


@dataclass
class Status:
    """A job's state and history."""

    sweep: str
    num: int
    overrides: list[str]
    config_hash: str
    status: str = RUNNING
    return_value: Any = None
    """What the task returned, if JSON can hold it."""
    error: dict[str, str] | None = None
    """Type, message and traceback of the last failure."""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def usd(self) -> float:
        """Of all attempts: an estimate."""
        return sum(attempt.usd for attempt in self.attempts)

    @classmethod
    def parse(cls, text: str | bytes) -> "Status | None":
        """Read a status; None if it is damaged."""
        try:
            fields = json.loads(text)
            attempts = [Attempt(**attempt) for attempt in fields.pop("attempts")]
            return cls(**fields, attempts=attempts)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @classmethod
    def read(cls, folder: Path) -> "Status | None":
        """The status in a job's folder; None if there is none, or a damaged one."""
        path = folder / FILE
        return cls.parse(path.read_bytes()) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Write it into the job's folder, whole or not at all."""
        beside = folder / f".{FILE}.part"
        beside.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(beside, folder / FILE)

    def begin(self, attempt: Attempt) -> list[Attempt]:
        """Add an attempt, and return the earlier ones of the same call; one that did not end has crashed."""
        for earlier in self.attempts:
            if earlier.outcome == RUNNING:
                earlier.outcome = CRASHED
        before = [earlier for earlier in self.attempts if earlier.call == attempt.call]
        self.attempts.append(attempt)
        self.status = RUNNING
        return before

    def complete(self, value: Any) -> None:
        """The task returned ``value``."""
        self.status, self.error = COMPLETED, None
        try:
            self.return_value = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            self.return_value = None

    def fail(self, error: BaseException, *, with_traceback: bool = True) -> bool:
        """The task raised ``error``; returns whether it is the one of the failure before."""
        last, text = self.error, "".join(traceback.format_exception(error)) if with_traceback else ""
        self.status, self.error = FAILED, {"type": type(error).__name__, "message": str(error), "traceback": text}
        return last is not None and all(last[key] == self.error[key] for key in ("type", "message"))
