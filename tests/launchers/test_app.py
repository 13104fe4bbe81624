"""An app of a few lines, written as anyone would, in a process of its own."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.fake_modal import FakeModal
from tests.launchers.conftest import Run

pytestmark = pytest.mark.slow
LAUNCH = ("--multirun", "hydra/launcher=nsm_modal", "hydra.launcher.gpu=null")
APP = """
import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf
from {helper} import describe


class Mode(Enum):
    SLOW = 1
    FAST = 2


@dataclass
class Config:
    x: int = MISSING
    mode: Mode = Mode.FAST
    text: str = ""
    doubled: int = "${{double:${{x}}}}"


OmegaConf.register_new_resolver("double", lambda x: 2 * x)
ConfigStore.instance().store(name="app", node=Config)


@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(config: Config) -> int:
    assert config.mode is Mode.FAST  # the class that this very module defines
    folder = HydraConfig.get().runtime.output_dir
    logging.getLogger(__name__).info("writing to %s", folder)
    print(describe(config.x))
    Path(folder, "folder.json").write_text(f'{{{{"folder": "{{folder}}"}}}}')
    Path(folder, "weights.ckpt").write_bytes(folder.encode())
    return config.doubled + len(config.text)


if __name__ == "__main__":
    main()
"""
HELPER = """
def describe(x):
    return f"this is job {x}"
"""


def check_outputs(home: Path, *xs: int) -> None:
    for num, x in enumerate(xs):
        job = home / str(num)
        assert json.loads((job / "folder.json").read_text()) == {"folder": str(job)}, "a path of this machine"
        assert (job / "weights.ckpt").read_text().startswith("/checkpoints/"), (
            "what is not text comes as it was written"
        )
        status = json.loads((job / "modal.json").read_text())
        assert (status["status"], status["return_value"], status["overrides"]) == ("completed", 2 * x, [f"x={x}"])
        assert f"this is job {x}" in (job / "modal.log").read_text()
        (log,) = (path for path in job.glob("*.log") if path.name != "modal.log")
        assert f"writing to {job}" in log.read_text()
        assert OmegaConf.load(job / ".hydra" / "config.yaml") == {
            "x": x,
            "mode": "FAST",
            "text": "",
            "doubled": "${double:${x}}",
        }
        assert OmegaConf.load(job / ".hydra" / "overrides.yaml") == [f"x={x}"]
        assert OmegaConf.load(job / ".hydra" / "hydra.yaml").hydra.runtime.output_dir == str(job)


def test_script(server: FakeModal, run: Run, tmp_path: Path) -> None:
    (tmp_path / "my_app.py").write_text(APP.format(helper="my_helper"))
    (tmp_path / "my_helper.py").write_text(HELPER)
    (tmp_path / "notes.txt").touch()
    done = run("my_app.py", *LAUNCH, "x=3,4", "hydra.sweep.dir=out")
    check_outputs(tmp_path / "out", 3, 4)
    assert re.search(r"0 +completed +6 .*\n1 +completed +8 ", done.stdout)
    assert "2 of 2 jobs completed" in done.stdout
    files = {name for mount in server.function("run").mount_ids for name in server.mounts[mount].files}
    assert {name for name in files if "nsm_modal" not in name} == {"/root/my_app.py", "/root/my_helper.py"}
    assert [app.state for app in server.apps.values()] == ["STOPPED"]


def test_package(run: Run, tmp_path: Path) -> None:
    """As ``python -m package.module``, from a package without ``__init__.py``, as is allowed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "app.py").write_text(APP.format(helper="mine.helper"))
    (tmp_path / "mine" / "helper.py").write_text(HELPER)
    run("-m", "mine.app", *LAUNCH, "x=5", f"hydra.sweep.dir={tmp_path / 'absolute'}")
    check_outputs(tmp_path / "absolute", 5)


def test_large_configuration(server: FakeModal, run: Run, tmp_path: Path) -> None:
    """Arguments over 2 MiB go through Modal's store of blobs."""
    (tmp_path / "my_app.py").write_text(APP.format(helper="my_helper"))
    (tmp_path / "my_helper.py").write_text(HELPER)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.yaml").write_text(f"defaults: [app, _self_]\ntext: {'x' * 2_200_000}\n")
    run("my_app.py", "--config-dir=large", "--config-name=config", *LAUNCH, "x=1", "hydra.sweep.dir=big")
    status = json.loads((tmp_path / "big" / "0" / "modal.json").read_text())
    assert status["return_value"] == 2_200_002
    assert list(server.inputs.values())[-1].payload.args_blob_id
