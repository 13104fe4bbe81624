"""Whatever happens to a container, to the client or to the service: nothing that was finished is lost."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_modal import FakeModal, wait_for
from tests.launchers import steps_app

LAUNCHER = ("--multirun", "hydra/launcher=nsm_modal", "hydra.launcher.gpu=null", "hydra.sweep.dir=out")


class Client:
    """Launches the app of steps as a person would, in a folder of its own."""

    def __init__(self, modal: FakeModal, folder: Path) -> None:
        self.modal, self.folder = modal, folder
        (folder / "steps_app.py").write_text(Path(steps_app.__file__).read_text())

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "steps_app.py", *LAUNCHER, *overrides]
        environment = {**os.environ, **self.modal.client_environment}
        with (self.folder / "printed").open("w") as printed:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=printed, stderr=printed)

    def wait(self, running: subprocess.Popen[bytes]) -> tuple[int, str]:
        """Exit code, and all that was printed."""
        code = running.wait(timeout=120)
        return code, (self.folder / "printed").read_text()

    def run(self, *overrides: str) -> tuple[int, str]:
        return self.wait(self.start(*overrides))

    def status(self, job: int) -> dict[str, object]:
        return json.loads((self.folder / "out" / str(job) / "modal.json").read_text())

    def outcomes(self, job: int) -> list[str]:
        return [attempt["outcome"] for attempt in self.status(job)["attempts"]]  # type: ignore[index,union-attr]

    def steps(self, job: int) -> list[int]:
        """The steps that all attempts together have taken."""
        taken = (self.folder / "out" / str(job) / "steps.txt").read_text()
        return [int(line.split()[0]) for line in taken.splitlines()]

    def committed_steps(self, job: int) -> int:
        """Steps in the checkpoint on the volume."""
        path = self.modal.volume("nsm-checkpoints").directory / "out" / str(job) / "state.ckpt"
        return json.loads(path.read_text())["step"] if path.exists() else 0


@pytest.fixture
def client(modal: FakeModal, tmp_path: Path) -> Client:
    return Client(modal, tmp_path)


def undisturbed(steps: int, seed: int) -> float:
    value = float(seed)
    for step in range(steps):
        value = value * 1.5 + step
    return value


def test_a_failing_job_costs_no_other_its_result(client: Client) -> None:
    code, printed = client.run("seed=0,1,2,3,4", "fails=always", "fails_for=3", "steps=2")
    assert code == 1
    for job in (0, 1, 2, 4):
        assert client.status(job)["return_value"] == undisturbed(2, seed=job)
        assert client.outcomes(job) == ["completed"]
    table = printed[printed.index("what varies") :]
    assert table.splitlines()[1].split()[:2] == ["3", "failed"], "failures come first"
    assert "job 3 failed: seed=3 fails=always fails_for=3 steps=2" in table
    assert "in fail\n    raise ValueError" in table
    assert "ValueError: this job always fails" in table
    assert "4 of 5 jobs completed" in table
    assert client.outcomes(3) == ["failed", "failed"], "the same error twice in a row is not tried a third time"


def test_an_error_that_passes_is_mended_by_a_retry(client: Client) -> None:
    code, _ = client.run("steps=4", "fails=once")
    assert code == 0
    assert client.outcomes(0) == ["failed", "completed"]
    assert client.status(0)["return_value"] == undisturbed(4, seed=0)
    assert client.steps(0) == [0, 1, 2, 3], "the retry goes on from the checkpoint"


def test_an_error_that_no_retry_can_mend_is_told_at_once(client: Client) -> None:
    code, printed = client.run("steps=2", "fails=always", "hydra.launcher.retries.not_after=[builtins.ValueError]")
    assert code == 1
    assert client.outcomes(0) == ["failed"]
    table = printed[printed.index("job  status") :]
    assert "job 0 failed: steps=2 fails=always" in table
    assert "\nValueError: this job always fails\n" in table
    assert "in fail\n" not in table


def test_a_task_that_exits_with_an_error_code_has_failed(client: Client) -> None:
    code, printed = client.run("steps=2", "fails=exits")
    assert code == 1
    assert client.outcomes(0) == ["failed", "failed"]
    assert "SystemExit: 3" in printed


@pytest.mark.parametrize("seed", [0, 1])
def test_a_preempted_job_ends_as_an_undisturbed_one(client: Client, modal: FakeModal, seed: int) -> None:
    at = random.Random(seed).randrange(1, 7)
    running = client.start("steps=8", "pause=0.15", f"seed={seed}", "hydra.launcher.commit_seconds=60")
    wait_for(lambda: "nsm-checkpoints" in {v.name for v in modal.volumes.values()}, timeout=60)
    wait_for(lambda: client.committed_steps(0) >= at, timeout=60)
    modal.preempt(modal.busy_containers()[0].container_id)
    code, printed = client.wait(running)
    assert code == 0, printed
    assert client.outcomes(0) == ["preempted", "completed"]
    assert client.status(0)["return_value"] == undisturbed(8, seed=seed)
    steps = client.steps(0)
    assert sorted(set(steps)) == list(range(8))
    assert len(steps) <= 9, "a preempted job commits what it has, and repeats the step that was interrupted at most"


def test_a_job_killed_twice_is_finished_by_the_third_container(client: Client, modal: FakeModal) -> None:
    running = client.start("steps=9", "pause=0.15", "hydra.launcher.commit_seconds=0.1")
    wait_for(lambda: "nsm-checkpoints" in {v.name for v in modal.volumes.values()}, timeout=60)
    for steps in (2, 5):
        wait_for(lambda steps=steps: client.committed_steps(0) >= steps and modal.busy_containers(), timeout=60)
        modal.kill(modal.busy_containers()[0].container_id)
        wait_for(lambda: not modal.busy_containers(), timeout=60)
    code, printed = client.wait(running)
    assert code == 0, printed
    assert client.outcomes(0) == ["crashed", "crashed", "completed"]
    assert client.status(0)["return_value"] == undisturbed(9, seed=0)
    assert 9 <= len(client.steps(0)) < 9 + 9, "an attempt goes on from what was committed"


def test_a_crash_loop_ends_with_a_reason(client: Client) -> None:
    code, printed = client.run("steps=2", "fails=killed")
    assert code == 1
    assert client.outcomes(0) == ["crashed", "crashed", "crashed", "failed"]
    assert "the container died 3 times without a word: out of memory?" in printed


def test_a_job_beyond_its_time_limit_goes_on_in_a_retry(client: Client) -> None:
    code, printed = client.run(
        "steps=8", "pause=0.4", "hydra.launcher.timeout=2", "hydra.launcher.retries.max_retries=9"
    )
    assert code == 0, printed
    assert set(client.outcomes(0)[:-1]) == {"timeout"}
    assert client.outcomes(0)[-1] == "completed"
    assert client.status(0)["return_value"] == undisturbed(8, seed=0)


def test_a_job_that_needs_more_than_all_its_attempts_says_so_and_can_be_continued(client: Client) -> None:
    slow = ("steps=8", "pause=0.4", "hydra.launcher.timeout=2", "hydra.launcher.retries.max_retries=0")
    code, printed = client.run(*slow)
    assert code == 1
    assert "every attempt reached the time limit" in printed
    launches = 1
    while code == 1 and launches < 8:
        code, printed = client.run(*slow)
        launches += 1
    assert code == 0, printed
    assert client.outcomes(0) == ["timeout"] * (launches - 1) + ["completed"]
    assert client.status(0)["return_value"] == undisturbed(8, seed=0)
    assert len(client.steps(0)) <= 8 + launches - 1, "the same command goes on"


def test_ctrl_c_brings_home_what_is_committed_and_says_how_to_go_on(client: Client, modal: FakeModal) -> None:
    modal.settings.containers_per_function = 1
    running = client.start("steps=4", "pause=0,3")  # time enough to interrupt the second job, on a busy machine too
    wait_for(lambda: "nsm-checkpoints" in {v.name for v in modal.volumes.values()}, timeout=60)
    wait_for(lambda: client.committed_steps(1) >= 2, timeout=60)
    running.send_signal(signal.SIGINT)
    code, printed = client.wait(running)
    assert code == 130
    assert client.outcomes(0) == ["completed"]
    assert client.outcomes(1) == ["cancelled"]
    assert not modal.busy_containers()
    assert all(app.stopped for app in modal.apps.values())
    at_home = client.folder / "out" / "1" / "state.ckpt"
    assert json.loads(at_home.read_text())["step"] >= 2
    command = re.search(r"to continue: python steps_app.py (.*)", printed)
    assert command is not None
    code, printed = client.run(*[word for word in shlex.split(command[1]) if word not in LAUNCHER])
    assert code == 0
    assert "1 of 2 jobs are complete" in printed
    assert client.outcomes(0) == ["completed"], "what was complete is not run again"
    assert client.outcomes(1) == ["cancelled", "completed"]
    assert client.status(1)["return_value"] == undisturbed(4, seed=0)


def test_the_same_sweep_again_skips_what_is_complete(client: Client, modal: FakeModal) -> None:
    first, _ = client.run("seed=0,1", "steps=2")
    calls = len(modal.calls)
    again, printed = client.run("seed=0,1", "steps=2")
    assert (first, again) == (0, 0)
    assert len(modal.calls) == calls
    assert "2 of 2 jobs are complete" in printed
    assert printed.count("completed before") == 2
    anew, _ = client.run("seed=0,1", "steps=2", "hydra.launcher.resume=false")
    assert anew == 0
    assert len(modal.calls) == calls + 2
    assert client.steps(0) == [0, 1], "a fresh start has a fresh folder"


def test_a_folder_that_holds_another_job_is_not_touched(client: Client, modal: FakeModal) -> None:
    client.run("seed=0", "steps=2")
    code, printed = client.run("seed=0", "steps=3")
    assert code == 1
    assert "out/0 on the volume holds a job of another configuration" in printed
    assert client.status(0)["return_value"] == undisturbed(2, seed=0)


def test_a_client_that_died_is_replaced_by_the_same_command(client: Client, modal: FakeModal) -> None:
    overrides = ("seed=0,1", "steps=6", "pause=1.5")
    running = client.start(*overrides)
    wait_for(lambda: "nsm-checkpoints" in {v.name for v in modal.volumes.values()}, timeout=60)
    wait_for(lambda: client.committed_steps(0) >= 1, timeout=60)
    running.kill()
    running.wait()
    code, printed = client.run(*overrides)
    assert code == 0, printed
    assert printed.count("(runs)") == 2
    assert len(modal.calls) == 2, "jobs that run are waited for, not started again"
    for job in (0, 1):
        assert client.outcomes(job) == ["completed"]
        assert client.steps(job) == list(range(6))


def test_an_unreliable_service_costs_nothing(client: Client, modal: FakeModal) -> None:
    modal.faults.fail_at_random(0.1, seed=0)
    code, printed = client.run("seed=0,1,2", "steps=3")
    assert sum(modal.faults.injected.values()) > 0
    assert code == 0, printed
    for job in range(3):
        assert client.status(job)["return_value"] == undisturbed(3, seed=job)


def test_fail_fast_stops_the_others(client: Client, modal: FakeModal) -> None:
    retries = "hydra.launcher.retries.max_retries=0"
    code, _ = client.run(
        "seed=0,1", "steps=200", "pause=0.1", "fails=always", "fails_for=0", retries, "hydra.launcher.fail_fast=true"
    )
    assert code == 1
    assert client.outcomes(0) == ["failed"]
    assert client.outcomes(1) == ["cancelled"]
