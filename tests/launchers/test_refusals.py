"""What cannot be done is refused before anything is asked of Modal, in words that name the setting."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra.errors import ConfigCompositionException

from nsm.cli import check_configurations
from nsm.config import ConfigError
from nsm.train import CONF
from tests.fake_modal import FakeModal
from tests.launchers.conftest import Multirun, refused

ROOT = Path(__file__).parents[2]
WRONG = [
    ("app_name", "'a b'", "'a b'", "1 to 30 letters"),
    ("app_name", "a" * 31, repr("a" * 31), "1 to 30 letters"),  # with the sweep's name it would be too long for Modal
    ("gpu", "'A100 40GB'", "'A100 40GB'", "a name like A100-40GB"),
    ("gpu", "A100-40GB:9", "'A100-40GB:9'", "a name like A100-40GB"),
    ("gpu", "[]", "[]", "a list of them"),
    ("gpu", "[null,L4]", "[None, 'L4']", "a list of them"),
    ("gpu", "{L4:1}", "{'L4': 1}", "a list of them"),
    ("gpu", "Z100", "Z100", "rates.gpu_second has T4, L4"),
    ("cpu", "0.05", "0.05", "0.1 to 64"),
    ("cpu", "nan", "nan", "0.1 to 64"),
    ("cpu", "65", "65.0", "0.1 to 64"),
    ("memory", "127", "127", "128 to 344064"),
    ("memory", "344065", "344065", "128 to 344064"),
    ("timeout", "0", "0", "1 to 86400"),
    ("timeout", "86401", "86401", "1 to 86400"),
    ("max_containers", "0", "0", "at least 1"),
    ("min_containers", "-1", "-1", "0 or more"),
    ("min_containers", "1", "1", "keep_app=true"),
    ("retries.max_retries", "-1", "-1", "0 to 10"),
    ("retries.max_retries", "11", "11", "0 to 10"),
    ("retries.backoff", "0.5", "0.5", "1 to 10"),
    ("retries.backoff", "10.5", "10.5", "1 to 10"),
    ("retries.first_delay", "-1", "-1.0", "0 to 60"),
    ("retries.first_delay", "61", "61.0", "0 to 60"),
    ("volume", "'a b'", "'a b'", "1 to 63 letters"),
    ("volume_version", "3", "3", "1, 2 or null"),
    ("mount", "checkpoints", "'checkpoints'", "an absolute path"),
    ("mount", "/", "'/'", "other than /"),
    ("mount", "//", "'//'", "other than /"),
    ("mount", "/root/", "'/root/'", "/root"),
    ("mount", "/tmp", "'/tmp'", "/tmp"),
    ("mount", "/a/../root", "'/a/../root'", "an absolute path"),
    ("commit_seconds", "0", "0.0", "above 0"),
    ("sync", "some", "'some'", "all, light, none"),
    ("sweep", "yesterday", "yesterday", "has no record of it"),
    ("env_passthrough", "[NOT_SET_HERE]", "'NOT_SET_HERE'", "no environment variable"),
    ("expected_seconds", "0", "0", "package.module:function"),
    ("expected_seconds", "soon", "'soon'", "package.module:function"),
    ("expected_seconds", "shop.jobs:nothing", "shop.jobs:nothing", "no attribute"),
    ("expected_seconds", "shop.jobs:name_of", "'shop.jobs:name_of'", "not a number"),
    ("budget_usd", "-1", "-1.0", "0 or more"),
    ("rates.core_second", "-1", "-1.0", "0 or more"),
    ("rates.gib_second", "-1", "-1.0", "0 or more"),
    ("rates.gpu_second.L4", "-1", "-1.0", "0 or more"),
    ("image.python_version", "2.7", "'2.7'", "a version like 3.11"),
    ("image.python_version", "'3'", "'3'", "a version like 3.11"),
    ("image.pyproject", "no.toml", "'no.toml'", "no such file"),
    ("image.constraints", "no.txt", "'no.txt'", "no such file"),
    ("image.builder", "shop", "'shop'", "package.module:function"),
    ("image.builder", "no.where:f", "'no.where:f'", "No module named 'no'"),
    ("image.builder", "shop.jobs:nothing", "'shop.jobs:nothing'", "no attribute"),
    ("image.local_packages", "[nowhere]", "'nowhere'", "no top-level package"),
    ("image.local_packages", "[shop.jobs]", "'shop.jobs'", "no top-level package"),
]


def launched(server: FakeModal) -> tuple[int, ...]:
    """How much there is on the server."""
    records = [entry for volume in server.volumes.values() for entry in volume.directory.rglob("*")]
    return len(server.apps), len(server.functions), len(server.inputs), len(records)


@pytest.fixture(autouse=True)
def no_containers(server: FakeModal) -> None:
    server.settings.containers_per_function = 0


@pytest.mark.parametrize(
    ("key", "value", "shown", "allowed"), WRONG, ids=[f"{key}={value}" for key, value, *_ in WRONG]
)
def test_wrong_value(
    server: FakeModal, multirun: Multirun, shop: ModuleType, key: str, value: str, shown: str, allowed: str
) -> None:
    before = launched(server)
    with refused(f"hydra.launcher.{re.escape(f'{key}={shown}')}.*{re.escape(allowed)}"):
        multirun(shop.sell, "+x=1", f"hydra.launcher.{key}={value}")
    assert launched(server) == before


def test_wrong_together(multirun: Multirun, shop: ModuleType) -> None:
    with refused(r"sweep='yesterday' cannot be used: .* not with resume=false"):
        multirun(shop.sell, "+x=1", "hydra.launcher.sweep=yesterday", "hydra.launcher.resume=false")


@pytest.mark.parametrize("override", ["hydra.launcher.timeout=long", "hydra.launcher.time_out=60"])
def test_wrong_type_or_name(multirun: Multirun, shop: ModuleType, override: str) -> None:
    """Hydra refuses these by itself, since the settings have types."""
    with pytest.raises(ConfigCompositionException, match=override.split("=")[0]):
        multirun(shop.sell, "+x=1", override)


def test_what_only_modal_can_know(server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
    """Modal's refusal is passed on, and the mended command is a launch like any other."""
    missing = "hydra.launcher.secrets=[no-such-secret]"
    with refused(r"Modal says: .*no-such-secret"):
        multirun(shop.sell, "+x=7", "hydra.launcher.detach=true", "hydra.launcher.app_name=first", missing)
    assert len(server.inputs) == 0
    multirun(shop.sell, "+x=7", "hydra.launcher.detach=true", "hydra.launcher.app_name=second")
    assert list(server.apps.values())[-1].deployment_name.startswith("second-")


def test_same_folder(multirun: Multirun, shop: ModuleType) -> None:
    with refused(r"two jobs would write into all/here: let hydra\.sweep\.subdir tell"):
        multirun(shop.sell, "+x=1,2", "hydra.sweep.dir=all", "hydra.sweep.subdir=here", "hydra.launcher.dry_run=true")


class TestMixedHardware:
    def test_launcher(self, multirun: Multirun, shop: ModuleType, tmp_path: Path) -> None:
        """A choice that a job makes, of a group that says where to run, cannot change the launcher of its sweep."""
        (tmp_path / "conf" / "where").mkdir(parents=True)
        (tmp_path / "conf" / "config.yaml").write_text("defaults: [where: small, _self_]\nx: 1\n")
        for name, cpu in (("small", 1), ("large", 8)):
            text = f"# @package _global_\nhydra: {{launcher: {{cpu: {cpu}, gpu: null}}}}\n"
            (tmp_path / "conf" / "where" / f"{name}.yaml").write_text(text)
        with refused(r"job 1 \(where=large\) asks for another launcher, or other settings"):
            multirun(shop.sell, "where=small,large", "hydra.launcher.dry_run=true", config_dir=tmp_path / "conf")

    @pytest.mark.parametrize("hardware", ["a100,cpu", "a100,a100_dev"])
    @pytest.mark.parametrize("also", ["seed=0", "hydra.launcher.dry_run=true"])
    def test_nsm(self, hardware: str, also: str) -> None:
        with pytest.raises(ConfigError, match=r"hardware=\w+ .*cannot be part of this multirun.*launch one multirun"):
            check_configurations([f"hardware={hardware}", also], CONF, "train")

    def test_a_setting_that_one_launcher_lacks(self) -> None:
        with pytest.raises(ConfigError, match=r"no setting hydra\.launcher\.gpuu: did you mean gpu\?"):
            check_configurations(["hardware=a100", "seed=0,1", "hydra.launcher.gpuu=1"], CONF, "train")


class TestWithoutCredentials:
    def test_says_so_and_launches_nothing(
        self, server: FakeModal, multirun: Multirun, shop: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MODAL_TOKEN_ID")
        requests = server.rpc_counts
        with refused(
            r"no credentials here: run `modal setup` once.*, or run on this machine with hydra/launcher=basic"
        ):
            multirun(shop.sell, "+x=1", "hydra.launcher.run_here='hydra/launcher=basic'")
        assert server.rpc_counts == requests

    @pytest.mark.slow
    def test_nsm(self, tmp_path: Path) -> None:
        """A plain command with a remote card, on a machine that never saw Modal."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_TOKEN")}
        environment |= {"MODAL_CONFIG_PATH": os.devnull, "MODAL_SERVER_URL": "http://127.0.0.1:9"}
        command = [sys.executable, "-m", "nsm.train", "hardware=a100", f"hydra.sweep.dir={tmp_path / 'out'}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line]
        for part in ("error: ", "`modal setup`", "hardware=gpu", "hardware=cpu"):
            assert part in line
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["multirun.yaml"]

    def test_dry_run_talks_to_nobody(
        self,
        server: FakeModal,
        multirun: Multirun,
        shop: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.delenv("MODAL_TOKEN_ID")
        requests = server.rpc_counts
        seconds = "hydra.launcher.expected_seconds=shop.jobs:expected_seconds"
        multirun(shop.sell, "+x=1,2", "hydra.launcher.dry_run=true", seconds, "hydra.sweep.dir=out")
        said = capsys.readouterr().out
        assert "#0 +x=1 -> out/0" in said
        assert "#1 +x=2 -> out/1" in said
        assert "2 jobs on A100-40GB, 4 cores, 8 GiB, at most 7200 s an attempt and 2 more after failures" in said
        assert "about $0.20; $28.22 if every attempt" in said  # 300 s at 0.00065316 $/s
        assert "nothing was launched" in said
        assert server.rpc_counts == requests


def test_dry_run_changes_nothing(server: FakeModal, multirun: Multirun, shop: ModuleType, tmp_path: Path) -> None:
    """With credentials a dry run reads what is complete; it starts, writes and removes nothing, in any mode."""
    job = server.create_volume("goods").directory / "out" / "0"
    job.mkdir(parents=True)
    (job / "precious.ckpt").write_text("weights")
    before = launched(server)
    settings = ["hydra.launcher.volume=goods", "hydra.launcher.resume=false", "hydra.sweep.dir=out"]
    multirun(shop.sell, "+x=1", "hydra.launcher.dry_run=true", *settings)
    with refused("budget_usd=0"):
        multirun(shop.sell, "+x=1", "hydra.launcher.budget_usd=0", *settings)
    assert launched(server) == before
    assert (job / "precious.ckpt").read_text() == "weights"


class TestBudget:
    EXPECTED = "hydra.launcher.expected_seconds=shop.jobs:expected_seconds"

    def test_refused(self, server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
        before = launched(server)
        with refused(r"budget_usd=0\.19 .*estimated at about \$0\.20;.*raise the budget"):
            multirun(shop.sell, "+x=1,2", self.EXPECTED, "hydra.launcher.budget_usd=0.19")
        assert launched(server) == before

    def test_just_enough(self, multirun: Multirun, shop: ModuleType) -> None:
        multirun(shop.sell, "+x=1,2", self.EXPECTED, "hydra.launcher.budget_usd=0.196", "hydra.launcher.dry_run=true")


def test_schedule_longer_than_timeout(multirun: Multirun, shop: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["hydra.launcher.expected_seconds=shop.jobs:expected_seconds", "hydra.launcher.timeout=150"]
    multirun(shop.sell, "+x=1,2", *settings, "hydra.launcher.dry_run=true")
    said = capsys.readouterr().out
    assert "job 1 is expected to take 200 s, and hydra.launcher.timeout=150 ends an attempt" in said
    assert "job 0 is expected" not in said
