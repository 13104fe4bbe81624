"""What stops a run, told so that a person can act on it."""

import contextlib
import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch


class RunError(RuntimeError):
    """Trouble that a user can do something about; the message names it and the remedy."""


class DivergedError(RunError):
    """A loss or gradient that is no finite number, as it would be again with the same settings."""


@contextlib.contextmanager
def explaining(batch_size: int) -> Iterator[None]:
    """Raise what is raised inside as :func:`explained` tells it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        told = explained(error, batch_size)
        if told is error:
            raise
        raise told from (None if isinstance(error, SystemExit) else error)


def explained(error: BaseException, batch_size: int) -> BaseException:
    """``error`` itself, or where a library raised it for a known reason, a :class:`RunError` that names the remedy.

    Args:
        error: what ended the run.
        batch_size: graphs in a training batch, the first thing to lower.
    """
    if isinstance(error, SystemExit):  # what Lightning makes of a KeyboardInterrupt
        return error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else KeyboardInterrupt()
    message = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full ({error.filename or error.strerror}); what was saved before is sound. Free some "
            "space and give the same command again; hydra.run.dir= moves the run, domain.cache_dir= the data cache"
        )
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    if on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in message:
        return RunError(
            f"out of {'GPU ' if on_gpu else ''}memory{_gpu_memory() if on_gpu else ''} with schedule.batch_size="
            f"{batch_size}. Lower it; schedule.batch_size={max(1, batch_size // 2)} schedule.accumulate_batches=2 "
            "makes steps of the same size. Also: domain.eval_batch_size, model.node_features"
            f"{', hardware.precision=bf16-mixed' if on_gpu else ''}. ({message})"
        )
    if (isinstance(error, RuntimeError) and message.startswith("DataLoader worker")) or _between_processes(error):
        reason = message.split("\n")[0]
        return RunError(
            f"a process that makes batches died ({reason}); often the machine ran out of memory. "
            "Give the same command again to continue; hardware.num_workers=0 makes batches without other processes"
        )
    return error


def _between_processes(error: BaseException) -> bool:
    """Whether a connection to another process broke off, as that to a loader that died with a batch in hand."""
    if not isinstance(error, ConnectionError | EOFError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-2:] == ("multiprocessing", "connection.py") for frame in frames)


def _gpu_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_allocated()
    return (
        f" ({torch.cuda.get_device_name()}: {total / 2**30:.1f} GiB, of which this run holds {held / 2**30:.1f} "
        f"and {free / 2**30:.1f} are free)"
    )
