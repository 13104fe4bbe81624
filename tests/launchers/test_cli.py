"""``nsm-modal``, as it is typed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_modal import FakeModal, wait_for
from tests.launchers import steps_app
from tests.launchers.conftest import Run

pytestmark = pytest.mark.slow
DETACHED = ("--multirun", "hydra/launcher=nsm_modal", "hydra.launcher.gpu=null", "hydra.launcher.detach=true")
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(run: Run) -> Command:
    """Run ``nsm-modal`` with these arguments."""

    def nsm_modal(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        return run("-m", "hydra_plugins.nsm_modal.cli", *arguments, code=code)

    return nsm_modal


def test_a_detached_sweep_is_watched_and_collected(
    server: FakeModal, run: Run, command: Command, tmp_path: Path
) -> None:
    shutil.copy(steps_app.__file__, tmp_path / "steps_app.py")
    assert "there is no volume nsm-checkpoints" in command("cost", code=1).stderr
    assert not server.volumes, "looking makes nothing"
    launched = run("steps_app.py", *DETACHED, "seed=0,1", "steps=2", "hydra.sweep.dir=out")
    assert "nsm-modal attach" in launched.stdout
    attached = command("attach").stdout
    assert "2 of 2 jobs completed" in attached
    assert json.loads((tmp_path / "out" / "1" / "modal.json").read_text())["status"] == "completed"
    assert all(app.stopped for app in server.apps.values())
    head, row = command("list").stdout.splitlines()
    assert head.split()[:5] == ["sweep", "jobs", "completed", "failed", "open"]
    name = row.split()[0]
    assert row.split()[1:5] == ["2", "2", "0", "0"]
    assert "no job was running" in command("cancel").stdout
    assert [line.split()[4] for line in command("cost", name).stdout.splitlines()[1:3]] == ["completed", "completed"]
    command("fetch", name[:12], "--sync=light", "--home=elsewhere")
    assert (tmp_path / "elsewhere" / "out" / "0" / "steps.txt").exists()
    assert not (tmp_path / "elsewhere" / "out" / "0" / "state.ckpt").exists(), "light leaves checkpoints"
    assert "has jobs 0, 1" in command("logs", name, "7", code=1).stderr
    assert "begins with 'nosuch'" in command("attach", "nosuch", code=1).stderr

    run("steps_app.py", *DETACHED, "steps=500", "pause=0.1", "hydra.sweep.dir=long")
    wait_for(lambda: bool(server.busy_containers()), timeout=60)
    assert "1 job stopped" in command("cancel").stdout
    assert not server.busy_containers()
    assert "0 of 1 job completed" in command("attach", code=1).stdout
    record = server.volume("nsm-checkpoints").directory / ".sweeps" / f"{name}.json"
    record.write_text(record.read_text()[:-9])
    assert f"the record of the sweep {name} on the volume nsm-checkpoints is damaged" in command("list", code=1).stderr


@pytest.mark.parametrize("name", ["list", "attach", "fetch", "logs", "cost", "cancel", "notebook"])
def test_every_command_explains_itself(name: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "hydra_plugins.nsm_modal.cli", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"nsm-modal {name}" in told.stdout


def test_a_hundred_jobs(server: FakeModal, run: Run, tmp_path: Path) -> None:
    shutil.copy(steps_app.__file__, tmp_path / "steps_app.py")
    launch = ("--multirun", "hydra/launcher=nsm_modal", "hydra.launcher.gpu=null", "hydra.sweep.dir=hundred")
    done = run("steps_app.py", *launch, "seed=range(100)", "steps=1")
    assert "100 of 100 jobs completed" in done.stdout
    print(next(line for line in done.stdout.splitlines() if "ms each" in line))  # the launcher's overhead a job
    values = [
        json.loads((tmp_path / "hundred" / str(num) / "modal.json").read_text())["return_value"] for num in range(100)
    ]
    assert values == [1.5 * seed for seed in range(100)]
