"""What stops a run, told so that a person can act on it."""

import errno

import torch


class RunError(RuntimeError):
    """Trouble that a user can do something about; the message names it and the remedy."""


def explained(error: BaseException, *, batch_size: int) -> BaseException:
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
    if isinstance(error, torch.OutOfMemoryError):
        return RunError(
            f"out of GPU memory{_gpu_memory()} with schedule.batch_size={batch_size}. Lower it; "
            f"schedule.batch_size={max(1, batch_size // 2)} schedule.accumulate_batches=2 makes steps of the same "
            f"size. Also: domain.eval_batch_size, model.node_features, hardware.precision=bf16-mixed. ({message})"
        )
    if isinstance(error, RuntimeError) and message.startswith("DataLoader worker"):
        return RunError(
            f"a process that makes batches died ({message.splitlines()[0]}); often the machine ran out of memory. "
            "Give the same command again to continue; hardware.num_workers=0 makes batches without other processes"
        )
    return error


def _gpu_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_allocated()
    return (
        f" ({torch.cuda.get_device_name()}: {total / 2**30:.1f} GiB, of which this run holds {held / 2**30:.1f} "
        f"and {free / 2**30:.1f} are free)"
    )
