"""What is asked of Modal is exactly what the settings say."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from hydra_plugins.nsm_modal.app import sources
from hydra_plugins.nsm_modal.config import ImageConfig, ModalLauncherConfig
from hydra_plugins.nsm_modal.cost import estimate, usd_per_second
from hydra_plugins.nsm_modal.jobs import volume_folder
from hydra_plugins.nsm_modal.task import TaskName

from tests.fake_modal import FakeModal
from tests.fake_modal.records import FunctionRecord
from tests.launchers.conftest import Multirun

ROOT = Path(__file__).parents[2]
DETACHED = ("hydra.launcher.detach=true", "hydra.launcher.gpu=null")


@pytest.fixture(autouse=True)
def no_containers(server: FakeModal) -> None:
    """Jobs stay in their queue: what they are submitted with is all that matters here."""
    server.settings.containers_per_function = 0


def image_lines(server: FakeModal, function: FunctionRecord) -> list[str]:
    """Of the image, above Modal's own base."""
    lines = server.image_commands(function.image_id)
    return [
        line for line in lines[lines.index("FROM base") :] if line != "FROM base" and not line.startswith("COPY --")
    ]


def test_defaults(server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
    multirun(shop.sell, "+x=1", "hydra.launcher.detach=true")
    function, app = server.function("run"), list(server.apps.values())[-1]
    assert (function.gpus, function.cpu, function.memory_mib) == (("A100-40GB",), 4.0, 8192)
    assert (function.timeout_seconds, function.single_use_containers) == (7200, True)
    policy = function.retry_policy
    assert policy is not None
    assert (policy.max_retries, policy.backoff_coefficient, policy.initial_delay_seconds) == (2, 2.0, 60.0)
    assert {path: server.volumes[name].name for path, name in function.volumes.items()} == {
        "/checkpoints": "nsm-checkpoints"
    }
    assert (function.max_containers, function.min_containers, function.regions) == (0, 0, ())
    assert (function.memory_snapshot, function.nonpreemptible, function.secret_ids) == (False, False, ())
    assert app.deployment_name.startswith("nsm-20")
    assert app.tags == {"sweep": app.deployment_name.removeprefix("nsm-")}
    own = [f"{package}=={version(package)}" for package in ("cloudpickle", "hydra-core", "omegaconf")]
    (line,) = image_lines(server, function)
    assert line.endswith(" ".join(own))
    python = ".".join(platform.python_version_tuple()[:2])
    assert server.image_commands(function.image_id)[0].startswith(f"FROM python:{python}.")


def test_every_setting(
    server: FakeModal, multirun: Multirun, shop: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "from here")
    server.create_secret("bank", {"KEY": "stored"})
    (tmp_path / "prices").mkdir()
    (tmp_path / "prices" / "list.csv").write_text("1,2")
    settings = [
        "app_name=shop",
        "+tags.team=vision",
        "gpu=[L40S,A100-40GB:2]",
        "cpu=2.5",
        "memory=3072",
        "timeout=1234",
        "max_containers=7",
        "region=us-east",
        "retries={max_retries:4,backoff:3,first_delay:7}",
        "volume=goods",
        "volume_version=2",
        "mount=/goods",
        "env_passthrough=[SHOP_TOKEN]",
        "secrets=[bank]",
        "+image.env.OPEN=all day",
        "+image.local_dirs.prices=stock/prices",
        "detach=true",
    ]
    multirun(shop.sell, "+x=1", *(f"{s[0] if s[0] == '+' else ''}hydra.launcher.{s.lstrip('+')}" for s in settings))
    function, app = server.function("run"), list(server.apps.values())[-1]
    assert (function.gpus, function.cpu, function.memory_mib) == (("L40S", "A100-40GB:2"), 2.5, 3072)
    assert (function.timeout_seconds, function.max_containers, function.regions) == (1234, 7, ("us-east",))
    policy = function.retry_policy
    assert policy is not None
    assert (policy.max_retries, policy.backoff_coefficient, policy.initial_delay_seconds) == (4, 3.0, 7.0)
    (volume,) = (server.volumes[volume_id] for volume_id in function.volumes.values())
    assert (*function.volumes, volume.name, volume.version) == ("/goods", "goods", 2)
    assert app.deployment_name.startswith("shop-20")
    assert app.tags == {"team": "vision", "sweep": app.deployment_name.removeprefix("shop-")}
    environment = {k: v for name in function.secret_ids for k, v in server.secrets[name].environment.items()}
    assert environment == {"KEY": "stored", "SHOP_TOKEN": "from here", "OPEN": "all day"}
    assert "ENV OPEN='all day'" in image_lines(server, function)
    assert not any("from here" in line for line in server.image_commands(function.image_id))
    assert mounted_files(server, function) >= {"/root/shop/jobs.py", "/root/stock/prices/list.csv"}


def test_no_gpu(server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
    multirun(shop.sell, "+x=2", *DETACHED)
    assert server.function("run").gpus == ()


def test_image_of_a100(server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
    """Everything that an image can have, in the order of how seldom it changes."""
    settings = [
        "python_version=3.12",
        f"pyproject={ROOT / 'pyproject.toml'}",
        f"constraints={ROOT / 'constraints.txt'}",
        "packages=['rich==14.0.0']",
        "pyg_wheels=https://data.pyg.org/whl/torch-2.12.0+cu126.html",
        "apt=[git,tmux]",
        "builder=shop.jobs:add_tool",
    ]
    multirun(shop.sell, "+x=3", *DETACHED, *(f"hydra.launcher.image.{setting}" for setting in settings))
    function = server.function("run")
    assert server.image_commands(function.image_id)[0].startswith("FROM python:3.12.")
    update, apt, copy, dependencies, pyg, own, builder = image_lines(server, function)
    assert (update, apt) == ("RUN apt-get update", "RUN apt-get install -y git tmux")
    assert copy == "COPY . /"
    (context,) = [layer.context_mount_id for layer in server.images.values() if layer.context_mount_id]
    assert list(server.mounts[context].files) == ["/constraints.txt"]
    assert dependencies.startswith("RUN python -m pip install ")
    assert {"'torch>=2.13,<2.14'", "modal==1.6.4", "'torch-geometric>=2.8,<2.9'"} <= {*dependencies.split()}
    assert dependencies.endswith(" --constraint /constraints.txt")
    assert "torch-scatter torch-sparse" in pyg
    assert "--find-links https://data.pyg.org/whl/torch-2.12.0+cu126.html" in pyg
    assert "--constraint /constraints.txt" in own
    assert own.endswith("rich==14.0.0")
    assert builder == "RUN install-tool --fast"


def mounted_files(server: FakeModal, function: FunctionRecord) -> set[str]:
    return {file for mount in function.mount_ids for file in server.mounts[mount].files}


def test_an_edit_builds_nothing(server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
    def launch() -> tuple[str, dict[str, str]]:
        multirun(shop.sell, "+x=4", *DETACHED)
        function = server.function("run")
        mounts = [server.mounts[mount] for mount in function.mount_ids]
        return function.image_id, {name: file.sha256_hex for mount in mounts for name, file in mount.files.items()}

    image, files = launch()
    built = len(server.images)
    source = Path(str(shop.__file__))
    source.write_text(source.read_text() + "\n# edited\n")
    image_after, files_after = launch()
    assert image_after == image
    assert len(server.images) == built
    assert {name for name, sha in files_after.items() if sha != files[name]} == {"/root/shop/jobs.py"}


def test_kept_app(server: FakeModal, multirun: Multirun, shop: ModuleType) -> None:
    """Deployed once, and anew only when its settings or its code have changed."""

    def launch(jobs: str, *overrides: str) -> int:
        kept = ("hydra.launcher.keep_app=true", "hydra.launcher.app_name=kept", "hydra.launcher.min_containers=2")
        multirun(shop.sell, jobs, *DETACHED, *kept, *overrides)
        return server.rpc_counts["AppPublish"]

    deployed = launch("+x=1,2")
    function = server.function("run")
    assert server.apps[function.app_id].deployment_name == "kept"
    assert (function.memory_snapshot, function.min_containers) == (True, 2)
    assert launch("+x=3,4") == deployed
    assert sum(call.function_id == function.function_id for call in server.calls.values()) == 4
    assert launch("+x=5", "hydra.launcher.cpu=2") == deployed + 1
    source = Path(str(shop.__file__))
    source.write_text(source.read_text() + "\n# edited\n")
    assert launch("+x=6", "hydra.launcher.cpu=2") == deployed + 2


def test_code_beside_a_script_is_code(tmp_path: Path) -> None:
    """A helper beside a script travels with it, so an edit of it makes another sweep."""
    for name in ("app.py", "helper.py"):
        (tmp_path / name).touch()
    found = sources(ImageConfig(), TaskName("main", None, str(tmp_path / "app.py")))
    assert found == [tmp_path / "app.py", tmp_path / "helper.py"]


def test_hydra_does_not_import_modal() -> None:
    """Hydra imports every plugin whenever any app starts."""
    code = "import sys; from hydra.core.plugins import Plugins; Plugins.instance(); "
    code += "assert 'hydra_plugins.nsm_modal.launcher' in sys.modules; print('modal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_volume_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on the volume follows from the one here, and stays on the volume."""
    monkeypatch.chdir(tmp_path)
    assert volume_folder("multirun/a/0") == "multirun/a/0"
    assert volume_folder("/data/out/0") == "data/out/0"
    assert volume_folder("../out/0") == str(tmp_path.parent / "out/0").lstrip("/")


class TestCost:
    """Against sums done by hand."""

    def test_price_of_a_container(self) -> None:
        # 4 cores x 0.0000131 + 8 GiB x 0.00000222 = 0.0000524 + 0.00001776 = 0.00007016
        assert usd_per_second(ModalLauncherConfig(), None) == pytest.approx(0.00007016)
        assert usd_per_second(ModalLauncherConfig(), "A100-40GB") == pytest.approx(0.00065316)  # + 0.000583
        assert usd_per_second(ModalLauncherConfig(cpu=1, memory=1024), "H100:2") == pytest.approx(
            0.00220932  # 2 x 0.001097 + 0.0000131 + 0.00000222
        )

    def test_launch(self) -> None:
        # 100 s + 200 s at 0.00065316 $/s; at most 2 jobs x 3 attempts x 7200 s
        cost = estimate(ModalLauncherConfig(), [100.0, 200.0])
        assert (cost.usd, cost.at_most) == (pytest.approx(0.195948), pytest.approx(28.216512))
        assert str(cost) == "about $0.20; $28.22 if every attempt of every job ran to its time limit"

    def test_unknown_time_and_the_dearest_card(self) -> None:
        settings = ModalLauncherConfig(gpu=["L40S", "A100-40GB"], timeout=1000)
        # an unknown job takes the time limit: (1000 + 100) s at the A100's price
        cost = estimate(settings, [None, 100.0])
        assert cost.usd == pytest.approx(0.718476)
        assert str(cost).startswith("up to $0.72 (one attempt to the time limit)")
