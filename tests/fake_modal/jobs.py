"""Functions that the tests run in containers. Only this file is mounted there."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import modal
from modal.exception import InputCancellation

CHECKPOINTS = Path("/checkpoints")


def commit() -> None:
    modal.Volume.from_name("checkpoints").commit()


def reload() -> None:
    modal.Volume.from_name("checkpoints").reload()


def double(value: int) -> int:
    return 2 * value


def echo(payload: bytes) -> bytes:
    return payload


def write(name: str, text: str) -> None:
    """Leaves the commit to the container's exit."""
    (CHECKPOINTS / name).write_text(text)


def look(paths: list[str], modules: list[str]) -> dict[str, object]:
    """What a container sees of the file system, of its modules and of its environment."""
    return {
        "exists": [path for path in paths if Path(path).exists()],
        "modules": [name for name in modules if importlib.util.find_spec(name)],
        "tmp": os.listdir("/tmp"),
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
    }


def list_and_write(directory: str) -> list[str]:
    """The names in a directory, and what writing there raises."""
    names = sorted(os.listdir(directory))
    try:
        Path(directory, "new").write_text("")
    except OSError as error:
        names.append(type(error).__name__ + f" {error.errno}")
    return names


def count_attempt(name: str = "attempts") -> int:
    """The number of this attempt, committed."""
    file = CHECKPOINTS / name
    number = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(number))
    commit()
    return number


def succeed_at(attempt: int) -> int:
    if count_attempt() < attempt:
        raise ValueError(f"not before attempt {attempt}")
    return attempt


def train(steps: int, pause: float) -> list[int]:
    """Count to ``steps``, from where the last attempt stopped; on an interrupt, commit and let it pass.

    Returns the steps that this attempt did.
    """
    file = CHECKPOINTS / "step"
    done = int(file.read_text()) if file.exists() else 0
    mine = []
    try:
        for step in range(done, steps):
            mine.append(step)
            print(f"step {step}", flush=True)
            # In one step, so that neither an interrupt nor a commit meets half a file.
            (CHECKPOINTS / "next").write_text(str(step + 1))
            (CHECKPOINTS / "next").replace(file)
            time.sleep(pause)
    except KeyboardInterrupt:
        commit()
        raise
    return mine


def wait_on_first_attempt(seconds: float) -> str:
    """Too slow the first time; writes down how it was stopped."""
    attempt = count_attempt()
    if attempt == 1:
        try:
            print("waiting", flush=True)
            time.sleep(seconds)
        except BaseException as error:
            write("stopped_by", f"{type(error).__name__}, {isinstance(error, InputCancellation)}")
            commit()
            raise
    return f"attempt {attempt}"


def ignore_cancellation(seconds: float) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(seconds)


def die() -> None:
    count_attempt()
    os.kill(os.getpid(), signal.SIGKILL)


def reload_with_open_file() -> list[str]:
    """What committing and reloading say while a file of the volume is open, and after."""
    said = []
    with (CHECKPOINTS / "log").open("w") as log:
        log.write("line")
        log.flush()
        for name, action in (("commit", commit), ("reload", reload)):
            try:
                action()
                said.append(f"{name} passed")
            except RuntimeError as error:
                said.append(f"{name}: {error}")
    reload()
    return said


def fan_out(values: list[int]) -> list[int]:
    """Calls another function of the same app."""
    function = modal.Function.from_name("sums", "double")
    return list(function.map(values))


def serve(port: int) -> str:
    with modal.forward(port, unencrypted=True) as tunnel:
        return f"{tunnel.host}:{tunnel.port}"
