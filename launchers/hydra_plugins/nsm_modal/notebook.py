"""JupyterLab in a container on Modal, reached through a tunnel, its files on the sweeps' volume.

Who knows the token has the container: it is made anew for each start, travels as the function's argument, and is
printed on the client alone. Jupyter refuses every other request, and pages of any other origin.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra_plugins.nsm_modal.app import build_app
from hydra_plugins.nsm_modal.collect import GRACE
from hydra_plugins.nsm_modal.config import ImageConfig, LauncherError, ModalLauncherConfig, RetriesConfig
from hydra_plugins.nsm_modal.cost import dearest
from hydra_plugins.nsm_modal.sync import VolumeClient

HOME = "notebooks"
"""Folder of the notebooks on the volume, their data and outputs beneath."""
ADDRESS = f"{HOME}/.address.json"
"""File on the volume that says where the notebook of a call is."""
MOST_HOURS = 4.0
PACKAGES = ("jupyterlab>=4.2,<5", "ipykernel>=6.29,<8", "ipywidgets>=8,<9", "jupyter-server-proxy>=4.4,<5")
POLL_SECONDS, START_SECONDS, LAST_SECONDS = 1.0, 120.0, 60.0
"""Between looks at what goes on; until Jupyter must answer; before the time limit, to stop and commit."""


def settings_of(*, volume: str, gpu: str | None, hours: float, packages: Sequence[str]) -> ModalLauncherConfig:
    """What the notebook's container gets: one container, one attempt."""
    here = {folder: folder for folder in ("conf", HOME) if Path(folder).is_dir()}
    pyproject, constraints = (name if Path(name).is_file() else None for name in ("pyproject.toml", "constraints.txt"))
    image = ImageConfig(
        pyproject=pyproject,
        constraints=constraints,
        packages=list(PACKAGES),
        local_packages=list(packages),
        local_dirs=here,
    )
    return ModalLauncherConfig(
        app_name="nsm-notebook",
        gpu=gpu,
        memory=16384,
        timeout=max(1, round(3600 * hours)),
        max_containers=1,
        retries=RetriesConfig(max_retries=0),
        volume=volume,
        image=image,
    )


async def open_notebook(settings: ModalLauncherConfig, volume: VolumeClient, say: Callable[[str], None]) -> None:
    """Start JupyterLab, tell its address, and wait until it ends; an interruption here ends it.

    Raises:
        LauncherError: if it could not be started.
    """
    token = secrets.token_urlsafe(32)
    spec = {"mount": settings.mount, "volume": settings.volume, "timeout": settings.timeout, "token": token}
    await volume.write(f"{HOME}/.keep", "")  # which makes a new volume
    app, function = build_app(settings, name=settings.app_name, task=None, tags={}, entry=serve)
    rate = dearest(settings)
    say(
        f"starting JupyterLab on {settings.gpu or 'no GPU'} for {settings.timeout / 3600:g} hours at most: about "
        f"${3600 * rate:.2f} an hour, ${settings.timeout * rate:.2f} at most; Ctrl-C here, or File > Shut Down there, "
        "ends it"
    )
    async with app.run():
        call = await function.spawn.aio(spec)
        watching = asyncio.create_task(_tell_address(volume, call.object_id, token, say))
        try:
            await call.get.aio()
        except asyncio.CancelledError:
            await _end(call, say)
            raise
        finally:
            watching.cancel()
    say(f"the notebook has ended; its files are in {HOME}/ on the volume {settings.volume}")


async def _tell_address(volume: VolumeClient, call: str, token: str, say: Callable[[str], None]) -> None:
    """Print the address whenever there is another one: a preempted notebook starts again elsewhere."""
    told = None
    while True:
        text = await volume.read(ADDRESS)
        found = {} if text is None else json.loads(text)
        if found.get("call") == call and found["url"] != told:
            told = found["url"]
            say(f"open {told}/lab/tree/dashboard.ipynb?token={token}")
        await asyncio.sleep(POLL_SECONDS if told is None else 20 * POLL_SECONDS)


async def _end(call: Any, say: Callable[[str], None]) -> None:
    """Stop the notebook, and let it commit what it holds."""
    import modal

    say("stopping the notebook")
    await call.cancel.aio()
    with contextlib.suppress(modal.exception.Error, asyncio.TimeoutError):  # it has ended, or Modal ends it
        await asyncio.wait_for(call.get.aio(), GRACE)


def serve(spec: dict[str, Any]) -> None:
    """Run JupyterLab in this container until it is shut down, stopped or out of time; the volume is committed then.

    Args:
        spec: plain values: ``mount``, ``volume``, ``timeout`` in seconds, ``token``.

    Raises:
        LauncherError: if Jupyter does not start.
    """
    import modal

    end = time.monotonic() + max(spec["timeout"] - LAST_SECONDS, spec["timeout"] / 2)
    volume = modal.Volume.from_name(spec["volume"])
    home = Path(spec["mount"], HOME)
    home.mkdir(parents=True, exist_ok=True)
    for path in Path("/root", HOME).glob("*.ipynb"):
        if not (home / path.name).exists():  # what was edited there stays
            shutil.copy(path, home)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    jupyter = subprocess.Popen(jupyter_command(home, port), env=os.environ | jupyter_environment(home, spec["token"]))
    try:
        await_answer(jupyter, port)
        with modal.forward(port) as tunnel:
            told = {"call": modal.current_function_call_id(), "url": tunnel.url}
            (Path(spec["mount"]) / ADDRESS).write_text(json.dumps(told))
            volume.commit()
            last = time.monotonic()
            while jupyter.poll() is None and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
                if time.monotonic() - last > ModalLauncherConfig.commit_seconds:
                    volume.commit()
                    last = time.monotonic()
    finally:
        jupyter.terminate()
        try:
            jupyter.wait(timeout=GRACE / 2)
        except subprocess.TimeoutExpired:
            jupyter.kill()
        volume.commit()


def jupyter_command(home: Path, port: int) -> list[str]:
    """JupyterLab for one user in a container of its own; the token is in its environment, which no list shows."""
    options = {
        "ip": "0.0.0.0",  # the tunnel is the only way in
        "port": port,
        "port_retries": 0,
        "open_browser": False,
        "allow_root": True,  # the container's user
        "allow_remote_access": True,  # under the tunnel's name
        "root_dir": home,
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--ServerApp.{key}={value}" for key, value in options.items())]


def jupyter_environment(home: Path, token: str) -> dict[str, str]:
    """Variables of Jupyter and its kernels."""
    path = os.pathsep.join(["/root", *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        "JUPYTER_TOKEN": token,
        "NSM_HOME": str(home),
        "PYTHONPATH": path,
        "TENSORBOARD_PROXY_URL": "/proxy/%PORT%/",
    }


def await_answer(jupyter: "subprocess.Popen[bytes]", port: int) -> None:
    """Wait until Jupyter answers.

    Raises:
        LauncherError: if it ends before, or does not answer in time.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and jupyter.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise LauncherError(f"JupyterLab did not start; it ended with {jupyter.poll()}")
