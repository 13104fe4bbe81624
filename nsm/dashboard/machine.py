"""The machine that a notebook runs on: what is installed, what there is to compute with."""

import os
import platform
import shutil
from pathlib import Path

import torch
from lightning.pytorch.accelerators.cuda import get_nvidia_gpu_stats

from nsm import runs
from nsm.dashboard.tables import Table, size
from nsm.train import CONF

HOME = Path(os.environ.get("NSM_HOME") or Path(CONF).parent).resolve()
"""Where the notebook works: data and outputs lie beneath."""
LEAST_DISK = 2 << 30
"""Bytes that should be free for data and checkpoints."""


def environment() -> Table:
    """Versions, processors, memory and disk; and whether anything is missing."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    free = shutil.disk_usage(Path.cwd()).free
    checks = [
        ("GPU", ", ".join(gpus) if gpus else "none: hardware=cpu is used, and full runs take minutes to hours"),
        (
            "disk",
            f"{size(free)} free" + ("" if free > LEAST_DISK else f", too little: make room for {size(LEAST_DISK)}"),
        ),
        ("processors", f"{os.cpu_count()}, of which PyTorch uses {torch.get_num_threads()}"),
        ("memory", size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("commit", runs.git_commit() or "not known"),
        *runs.versions().items(),
    ]
    return Table(("here", "found"), checks)


def gpu() -> Table:
    """Each GPU: memory, load, what it can do; what to do where there is none."""
    rows: list[tuple[str, str]] = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        held = torch.cuda.memory_allocated(number)
        rows += [
            (
                "name",
                f"{about.name}, {about.multi_processor_count} multiprocessors, compute {about.major}.{about.minor}",
            ),
            ("memory", f"{size(total)}, free {size(free)}, held by this notebook {size(held)}"),
            ("bf16", "yes" if torch.cuda.is_bf16_supported() else "no: hardware.precision=16-mixed"),
        ]
        if shutil.which("nvidia-smi"):
            rows += [(key, f"{value:.0f}") for key, value in get_nvidia_gpu_stats(torch.device("cuda", number)).items()]
    if not rows:
        rows = [
            ("GPU", "none that PyTorch can use"),
            (
                "PyTorch",
                f"{torch.__version__}, built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'}",
            ),
            ("driver", shutil.which("nvidia-smi") or "nvidia-smi is not installed"),
            (
                "elsewhere",
                "nsm-modal notebook opens this notebook on an A100; hardware=a100 in SWEEP sends runs to one",
            ),
        ]
    return Table(("GPU", "found"), rows)
