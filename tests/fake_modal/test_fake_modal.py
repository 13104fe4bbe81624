"""The stand-in does what the launcher's tests count on, seen through the real client and real containers."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import modal
import pytest
from modal.exception import AuthError, FunctionTimeoutError, InternalFailure, InvalidError, NotFoundError, RemoteError

from tests.fake_modal import FakeModal, Settings, jobs, reset_client, wait_for, why_not
from tests.fake_modal.isolation import CHECKOUT

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

Record = TypeVar("Record")
Defined = dict[str, modal.Function[..., Any, Any]]


@pytest.fixture
def server() -> Iterator[FakeModal]:
    """A server for the client of this process, that must know every RPC and leave nothing behind."""
    with FakeModal(Settings(idle_seconds=0.2)) as server, server.in_process_client():
        yield server
    assert not server.errors
    assert not server.unimplemented
    assert all(container.exit_code is not None for container in server.containers.values())
    assert not any(Path(f"/proc/{container.pid}").exists() for container in server.containers.values())
    assert not any(container.directory.parent.parent.exists() for container in server.containers.values())


def with_jobs(image: modal.Image) -> modal.Image:
    """Mount the jobs' file and nothing else of the checkout."""
    return image.add_local_file(jobs.__file__, "/root/tests/fake_modal/jobs.py")


def define(app: modal.App, *functions: Callable[..., Any], **options: Any) -> Defined:
    """Make functions of the app, with a volume at /checkpoints and containers for a single input."""
    volume = modal.Volume.from_name("checkpoints", create_if_missing=True)
    options = {
        "single_use_containers": True,
        "image": with_jobs(modal.Image.debian_slim()),
        "volumes": {"/checkpoints": volume},
        **options,
    }
    return {f.__name__: app.function(include_source=False, **options)(f) for f in functions}


@pytest.fixture
def running(server: FakeModal) -> Iterator[Callable[..., Any]]:
    """Run one function in an ephemeral app until the test's end: ``running(jobs.double, timeout=10)``."""
    with ExitStack() as stack:

        def run(function: Callable[..., Any], **options: Any) -> modal.Function[..., Any, Any]:
            app = modal.App("test")
            handle = define(app, function, **options)[function.__name__]
            stack.enter_context(app.run())
            return handle

        yield run


def first(records: dict[str, Record]) -> Record:
    return next(iter(records.values()))


def committed(server: FakeModal, name: str) -> str:
    return (server.volume("checkpoints").directory / name).read_text()


class TestContainers:
    def test_sees_what_was_mounted_and_nothing_else(
        self, server: FakeModal, running: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLIENT_ONLY", "1")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "table.csv").write_text("1,2")
        image = with_jobs(modal.Image.debian_slim().env({"FROM_IMAGE": "two words"}).workdir("/somewhere"))
        image = image.add_local_dir(tmp_path / "data", "/opt/data")
        secret = modal.Secret.from_dict({"FROM_SECRET": "s"})
        look = running(jobs.look, image=image, secrets=[secret])
        paths = [str(tmp_path), str(CHECKOUT / "pyproject.toml"), "/opt/data/table.csv", "/checkpoints", sys.executable]
        seen = look.remote(paths, ["nsm", "tests.conftest", "tests.fake_modal.jobs", "modal"])
        assert seen["exists"] == ["/opt/data/table.csv", "/checkpoints", sys.executable]
        assert seen["modules"] == ["tests.fake_modal.jobs", "modal"]
        assert seen["tmp"] == []
        assert seen["cwd"] == "/somewhere"
        environment = seen["environment"]
        assert (environment["FROM_IMAGE"], environment["FROM_SECRET"]) == ("two words", "s")
        assert "CLIENT_ONLY" not in environment
        assert "MODAL_TOKEN_ID" not in environment

    def test_unmounted_code_cannot_be_imported(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.settings.failed_start_limit = 1
        with pytest.raises(ModuleNotFoundError, match="tests"):
            running(jobs.double, image=modal.Image.debian_slim()).remote(1)

    def test_is_reused_unless_for_single_use(self, server: FakeModal, running: Callable[..., Any]) -> None:
        double = running(jobs.double, single_use_containers=False, max_containers=1)
        assert list(double.map(range(5))) == [0, 2, 4, 6, 8]
        assert len(server.containers) == 1

    def test_payload_and_result_beyond_two_mebibytes(self, server: FakeModal, running: Callable[..., Any]) -> None:
        payload = os.urandom(3 << 20)
        assert running(jobs.echo).spawn(payload).get() == payload
        assert server.rpc_counts["BlobCreate"] == 2

    def test_that_cannot_start_fails_its_input(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.faults.fail_starts(4)
        double = running(jobs.double)
        with pytest.raises(RemoteError, match="exited with code 1 before"):
            double.spawn(1).get()
        assert double.spawn(2).get() == 4  # after one more failed start
        wait_for(lambda: not any(c.alive for c in server.containers.values()))
        assert [c.exit_code for c in server.containers.values()] == [1, 1, 1, 1, 0]
        assert "injected failure" in server.log_text()

    def test_tunnel(self, server: FakeModal, running: Callable[..., Any]) -> None:
        assert running(jobs.serve).remote(1234) == "127.0.0.1:1234"
        assert [(t.port, t.unencrypted) for t in server.tunnels] == [(1234, True)]


class TestVolumes:
    @pytest.mark.parametrize("version", [1, 2])
    def test_client_reads_and_writes(self, server: FakeModal, tmp_path: Path, version: int) -> None:
        large = os.urandom(9 << 20) + bytes(1000)  # two blocks, zeros at the end
        (tmp_path / "tree" / "deep").mkdir(parents=True)
        (tmp_path / "tree" / "deep" / "leaf").write_bytes(large)
        volume = modal.Volume.from_name("files", create_if_missing=True, version=version)
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"text"), "/top.txt")
            batch.put_directory(tmp_path / "tree", "/tree")
        assert [entry.path for entry in volume.listdir("/", recursive=True)] == [
            *("top.txt", "tree", "tree/deep", "tree/deep/leaf")
        ]
        assert b"".join(volume.read_file("tree/deep/leaf")) == large
        with pytest.raises(FileExistsError), volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"other"), "/top.txt")
        with volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(b"other"), "/top.txt")
        volume.copy_files(["top.txt"], "copy.txt")
        assert b"".join(volume.read_file("copy.txt")) == b"other"
        volume.remove_file("tree", recursive=True)
        assert [entry.path for entry in volume.listdir("/")] == ["copy.txt", "top.txt"]
        with pytest.raises(FileNotFoundError):
            b"".join(volume.read_file("tree/deep/leaf"))
        with pytest.raises(FileNotFoundError):
            volume.remove_file("tree")
        assert [v.name for v in modal.Volume.objects.list()] == ["files"]
        modal.Volume.objects.delete("files")
        with pytest.raises(NotFoundError):
            modal.Volume.from_name("files").hydrate()

    def test_container_commits_at_its_exit(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.settings.commit_delay = 2.0
        running(jobs.write).remote("name", "text")
        assert not server.commits  # the result does not wait for the commit
        wait_for(lambda: server.commits)
        assert committed(server, "name") == "text"
        assert server.commits[0].changed == ("name",)

    def test_exit_commits_can_be_switched_off(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.settings.exit_commits = False
        running(jobs.write).remote("name", "text")
        wait_for(lambda: not any(c.alive for c in server.containers.values()))
        assert not server.commits

    def test_killed_container_keeps_what_was_committed_in_the_background(
        self, server: FakeModal, running: Callable[..., Any]
    ) -> None:
        call = running(jobs.train).spawn(1000, 0.01)
        wait_for(lambda: "step 3" in server.log_text())
        server.kill(server.busy_containers()[0].container_id)
        wait_for(lambda: server.log_text().count("step 3") == 2)
        assert not server.commits
        server.settings.background_commit_interval = 0.1
        wait_for(lambda: sum("step" in commit.changed for commit in server.commits) == 2)
        call.cancel(terminate_containers=True)
        assert int(committed(server, "step")) > 3
        assert all(commit.background for commit in server.commits)

    def test_container_sees_commits_of_its_start(self, server: FakeModal, running: Callable[..., Any]) -> None:
        volume = modal.Volume.from_name("checkpoints", create_if_missing=True)
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"7"), "/step")
        assert running(jobs.train).remote(9, 0.0) == [7, 8]

    def test_mount_options(self, server: FakeModal, running: Callable[..., Any]) -> None:
        volume = modal.Volume.from_name("inputs", create_if_missing=True)
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b""), "/mine/a")
            batch.put_file(io.BytesIO(b""), "/theirs/b")
        mount = volume.with_mount_options(read_only=True, sub_path="/mine")
        names = running(jobs.list_and_write, volumes={"/inputs": mount}).remote("/inputs")
        assert names == ["a", f"OSError {errno.EROFS}"]

    def test_refuses_to_reload_while_files_are_open(self, server: FakeModal, running: Callable[..., Any]) -> None:
        said = running(jobs.reload_with_open_file).remote()
        assert said[0] == "commit passed"
        assert said[1].startswith("reload: there are open files preventing the operation")
        assert committed(server, "log") == "line"


class TestAttempts:
    def test_retries_wait_for_scaled_delays(self, server: FakeModal, running: Callable[..., Any]) -> None:
        retries = modal.Retries(max_retries=2, backoff_coefficient=2.0, initial_delay=60.0, max_delay=60.0)
        call = running(jobs.succeed_at, retries=retries).spawn(3)
        assert call.get(timeout=50) == 3  # the delays alone would be two minutes
        assert first(server.inputs).retry_count == 2

    def test_last_failure_reaches_the_client(self, server: FakeModal, running: Callable[..., Any]) -> None:
        call = running(jobs.succeed_at, retries=1).spawn(3)
        with pytest.raises(ValueError, match="not before attempt 3"):
            modal.FunctionCall.from_id(call.object_id).get()
        assert committed(server, "attempts") == "2"
        assert first(server.inputs).status == "FAILURE"

    def test_client_retries_synchronous_calls(self, server: FakeModal, running: Callable[..., Any]) -> None:
        assert running(jobs.succeed_at, retries=1).remote(2) == 2
        assert server.rpc_counts["FunctionRetryInputs"] == 1

    def test_preempted_input_goes_on_elsewhere(self, server: FakeModal, running: Callable[..., Any]) -> None:
        call = running(jobs.train).spawn(30, 0.05)
        wait_for(lambda: "step 5" in server.log_text())
        server.preempt(server.busy_containers()[0].container_id, grace=120.0)
        steps = call.get()
        assert steps[0] >= 5
        assert steps[-1] == 29
        record = first(server.inputs)
        assert (len(record.container_ids), record.retry_count) == (2, 0)
        assert [c.preempted for c in server.containers.values()] == [True, False]

    def test_preempted_container_is_killed_after_the_grace(
        self, server: FakeModal, running: Callable[..., Any]
    ) -> None:
        server.settings.commit_delay = 60.0  # so that its commit outlasts the grace
        running(jobs.train).spawn(1000, 0.05)
        wait_for(lambda: "step 1" in server.log_text())
        container = server.busy_containers()[0]
        server.preempt(container.container_id, grace=0.5)
        wait_for(lambda: not container.alive)
        assert container.exit_code == -signal.SIGKILL
        assert not server.commits

    def test_crash_loop_ends(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.settings.loss_limit = 2
        with pytest.raises(InternalFailure, match=r"exited with code -9; gave up after 2 containers"):
            running(jobs.die).spawn().get()
        assert committed(server, "attempts") == "2"

    def test_timeout_cancels_and_each_retry_has_all_of_it(self, server: FakeModal, running: Callable[..., Any]) -> None:
        call = running(jobs.wait_on_first_attempt, timeout=2, retries=1).spawn(60)
        assert call.get() == "attempt 2"
        assert committed(server, "stopped_by") == "InputCancellation, True"

    def test_timeout_without_retry(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.settings.cancellation_grace, server.settings.timeout_scale = 0.5, 0.001
        call = running(jobs.ignore_cancellation, timeout=1000).spawn(60)
        with pytest.raises(FunctionTimeoutError, match="hit its timeout of 1000s"):
            call.get()
        wait_for(lambda: first(server.containers).exit_code == -signal.SIGKILL)

    @pytest.mark.parametrize("terminate", [False, True])
    def test_cancel(self, server: FakeModal, running: Callable[..., Any], terminate: bool) -> None:
        server.settings.cancellation_grace = 60.0
        function = running(jobs.wait_on_first_attempt, max_containers=1, retries=5)
        call, waiting = function.spawn(60), function.spawn(60)
        wait_for(lambda: "waiting" in server.log_text())
        waiting.cancel()
        call.cancel(terminate_containers=terminate)
        for cancelled in (call, waiting):
            with pytest.raises(RemoteError):
                cancelled.get()
        assert [record.status for record in server.inputs.values()] == ["TERMINATED", "TERMINATED"]
        wait_for(lambda: first(server.containers).exit_code is not None)
        assert first(server.containers).exit_code == (-signal.SIGKILL if terminate else 0)
        assert len(server.containers) == 1

    def test_get_does_not_wait_longer_than_asked(self, server: FakeModal, running: Callable[..., Any]) -> None:
        call = running(jobs.train).spawn(1000, 0.05)
        with pytest.raises(TimeoutError):
            call.get(timeout=0)


class TestFaults:
    def test_client_survives_an_unreliable_server(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.faults.fail_at_random(0.2, seed=1)
        server.faults.fail_next("FunctionMap", 2)
        assert running(jobs.double).spawn(4).get() == 8
        assert server.faults.injected["FunctionMap"] >= 2
        assert sum(server.faults.injected.values()) > 3

    def test_wrong_token(self, server: FakeModal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-wrong")
        reset_client()
        with pytest.raises(AuthError):
            modal.Volume.from_name("files", create_if_missing=True).hydrate()

    @pytest.mark.parametrize(("options", "problem"), [({"gpu": "A1000"}, "A1000"), ({"gpu": "T4"}, "nonpreemptible")])
    def test_refuses_what_modal_does_not_offer(
        self, server: FakeModal, running: Callable[..., Any], options: dict[str, str], problem: str
    ) -> None:
        with pytest.raises(InvalidError, match=problem):
            running(jobs.double, nonpreemptible=True, **options)


class TestApps:
    def test_ephemeral_app_ends_with_its_client(self, server: FakeModal) -> None:
        app = modal.App("sums", tags={"kind": "test"})
        train = define(app, jobs.train)["train"]
        with app.run():
            call = train.spawn(1000, 0.05)
            wait_for(lambda: server.busy_containers())
            assert [a.state for a in server.apps.values()] == ["EPHEMERAL"]
        assert [(a.state, a.tags) for a in server.apps.values()] == [("STOPPED", {"kind": "test"})]
        wait_for(lambda: not any(c.alive for c in server.containers.values()))
        with pytest.raises(RemoteError, match="stopped"):
            call.get()

    def test_detached_app_outlives_its_client(self, server: FakeModal) -> None:
        app = modal.App("sums")
        train = define(app, jobs.train)["train"]
        with app.run(detach=True):
            call_id = train.spawn(20, 0.05).object_id
        assert first(server.apps).state == "DETACHED_DISCONNECTED"
        assert len(modal.FunctionCall.from_id(call_id).get()) == 20

    def test_app_of_a_vanished_client_is_stopped(self, server: FakeModal) -> None:
        server.settings.client_timeout = 0.5
        app = modal.App("sums")
        train = define(app, jobs.train)["train"]
        with app.run():  # beats every 15 s
            train.spawn(1000, 0.05)
            wait_for(lambda: first(server.apps).stopped)
            assert first(server.apps).disconnect_reason == "heartbeat timeout"
            wait_for(lambda: not any(c.alive for c in server.containers.values()))

    def test_deployed_app(self, server: FakeModal) -> None:
        app = modal.App("sums")
        define(app, jobs.double, jobs.fan_out)
        app.deploy()
        reset_client()  # another client
        call = modal.Function.from_name("sums", "fan_out").spawn([1, 2])
        assert call.get() == [2, 4]
        (top,) = call.get_call_graph()
        assert (top.function_name, [child.function_name for child in top.children]) == ("fan_out", ["double"] * 2)
        stats = modal.Function.from_name("sums", "double").get_current_stats()
        assert stats.backlog == 0
        with pytest.raises(NotFoundError):
            modal.Function.from_name("sums", "triple").hydrate()
        modal.App.lookup("sums").stop()
        assert first(server.apps).state == "STOPPED"
        with pytest.raises(NotFoundError):
            modal.Function.from_name("sums", "double").hydrate()


class TestRecords:
    def test_function(self, server: FakeModal, running: Callable[..., Any]) -> None:
        server.create_secret("keys", {"API_KEY": "k"})
        running(
            jobs.double,
            gpu=["L40S", "A100-40GB:2"],
            cpu=4.0,
            memory=16384,
            timeout=7200,
            retries=modal.Retries(max_retries=2, backoff_coefficient=2.0, initial_delay=60.0, max_delay=60.0),
            max_containers=9,
            min_containers=1,
            region="us-east",
            cloud="aws",
            secrets=[modal.Secret.from_name("keys", required_keys=["API_KEY"])],
        )
        function = server.function("double")
        assert (function.gpus, function.cpu, function.memory_mib) == (("L40S", "A100-40GB:2"), 4.0, 16384)
        assert function.timeout_seconds == 7200
        policy = function.retry_policy
        assert policy is not None
        assert [policy.delay(retry) for retry in (1, 2)] == [60.0, 60.0]
        assert (policy.max_retries, policy.backoff_coefficient) == (2, 2.0)
        assert (function.max_containers, function.min_containers) == (9, 1)
        assert (function.cloud, function.regions, function.nonpreemptible) == ("aws", ("us-east",), False)
        assert function.single_use_containers
        assert not function.memory_snapshot
        assert {path: server.volumes[i].name for path, i in function.volumes.items()} == {"/checkpoints": "checkpoints"}
        assert [server.secrets[i].environment for i in function.secret_ids] == [{"API_KEY": "k"}]

    def test_image_layers_do_not_depend_on_mounted_files(
        self, server: FakeModal, running: Callable[..., Any], tmp_path: Path
    ) -> None:
        ids, source = [], tmp_path / "source.py"
        for text in ("1", "2"):
            source.write_text(text)
            constraints = tmp_path / "constraints.txt"
            constraints.write_text("numpy==2.0")
            base = modal.Image.debian_slim(python_version="3.11").pip_install_from_requirements(str(constraints))
            running(jobs.double, image=base.add_local_file(source, "/root/source.py"))
            function = server.function("double")
            ids.append(function.image_id)
            files = [path for i in function.mount_ids for path in server.mounts[i].files]
            assert files == ["/root/source.py"]
        assert ids[0] == ids[1]
        assert any("pip install -r /.requirements.txt" in line for line in server.image_commands(ids[0]))
        assert list(server.images[ids[0]].context_files.values()) == [b"numpy==2.0"]


def modal_command(server: FakeModal, *arguments: str) -> str:
    environment = {**os.environ, **server.client_environment, "COLUMNS": "200"}
    command = [sys.executable, "-m", "modal", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.mark.slow
def test_logs_of_calls_and_commands(server: FakeModal) -> None:
    app = modal.App("sums")
    train = define(app, jobs.train)["train"]
    with app.run(detach=True):
        call = train.spawn(2, 0.0)
        call.get()
        wait_for(lambda: not any(c.alive for c in server.containers.values()))
        assert "".join(entry.message for entry in call.logs.tail()) == "step 0\nstep 1\n"
        assert "".join(entry.message for entry in call.logs.stream()) == "step 0\nstep 1\n"
    (app_id,), (container_id,) = server.apps, server.containers
    assert "step 1" in modal_command(server, "container", "logs", container_id)
    assert app_id in modal_command(server, "app", "list")
    modal_command(server, "app", "stop", app_id, "--yes")
    assert first(server.apps).stopped
    assert "step 1" in modal_command(server, "app", "logs", app_id, "--follow")


def test_runs_a_command_against_a_fresh_server(tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text("import modal\nmodal.Volume.objects.create('made')\nraise SystemExit(3)\n")
    command = [sys.executable, "-m", "tests.fake_modal", sys.executable, str(script)]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 3
    assert "VolumeGetOrCreate 1" in result.stderr


def test_a_command_that_is_interrupted_ends_in_its_own_time(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\n"
        "try:\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    print('ended', flush=True)\n"
    )
    command = [sys.executable, "-m", "tests.fake_modal", sys.executable, str(script)]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=60)
    assert out == "ended\n"
    assert "Traceback" not in err
    assert process.returncode == 0
