"""Hydra's own tests of launchers, with containers that share no file with this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

from tests.fake_modal import FakeModal

pytestmark = pytest.mark.slow
NAME, VOLUME = "nsm_modal", "nsm-checkpoints"
SETTINGS = ["hydra.launcher.gpu=null", "hydra.launcher.resume=false"]


@pytest.fixture(scope="module", autouse=True)
def in_containers(server: FakeModal) -> Iterator[None]:
    """Nothing that passes here has run on this machine instead."""
    yield
    assert len(server.inputs) > 0
    assert all(job.status == "SUCCESS" and len(job.container_ids) == 1 for job in server.inputs.values())


@pytest.mark.parametrize(("launcher_name", "overrides"), [pytest.param(NAME, SETTINGS, id=NAME)])
class TestLauncher(LauncherTestSuite):
    """Nine cases, none left out."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [pytest.param(NAME, [*SETTINGS, "hydra.sweeper.max_batch_size=2"], id=NAME)],
)
class TestBatches(BatchedSweeperTestSuite):
    """Six jobs by a sweeper that asks for two at a time."""


class TestIntegration(IntegrationTestSuite):
    """Apps in processes of their own, which print into a file whose absolute path stands in their source.

    The suite wants that path, and those that jobs print, to mean the same in a job as here. Without a shared file
    system they do if the volume is mounted, in the containers, where the app's folder is here.
    """

    @pytest.fixture
    def task_launcher_cfg(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def extra_flags(self, tmpdir: Path) -> list[str]:
        return ["--multirun", f"hydra/launcher={NAME}", *SETTINGS, f"hydra.launcher.mount={tmpdir}"]

    @pytest.fixture(autouse=True)
    def committed(self, server: FakeModal) -> None:
        volumes = [volume for volume in server.volumes.values() if volume.name == VOLUME]
        self.volume = (volumes or [server.create_volume(VOLUME)])[0].directory

    def generate_custom_cmd(self) -> Callable[..., list[str]]:
        """Run the app and fetch what its job wrote beside the job's folder, which does not come home by itself."""
        return lambda command, _: ["sh", "-c", f'"$@" && cp {self.volume}/output.txt .', "sh", *command]
