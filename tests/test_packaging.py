"""Installation: what constraints.txt pins, and when the Makefile installs."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
)


def pins() -> Iterator[Requirement]:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pinned_versions(environment: dict[str, str]) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for pin in pins():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin} is not an exact version"
        if applies(pin, environment):
            versions.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    return versions


def requirements(package: str, extra: str = "") -> list[Requirement]:
    declared = [Requirement(text) for text in importlib.metadata.requires(package) or []]
    return [r for r in declared if applies(r, {"extra": ""}) or (extra and applies(r, {"extra": extra}))]


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: p["sys_platform"])
@pytest.mark.parametrize("python", PYTHONS)
def test_direct_requirements_have_one_pin_that_they_allow(python: str, platform: dict[str, str]) -> None:
    versions = pinned_versions({"python_version": python, "python_full_version": f"{python}.0", **platform})
    for requirement in requirements("nsm", extra="dev"):
        pinned = versions.get(canonicalize_name(requirement.name), [])
        assert len(pinned) == 1, f"{requirement}: pinned to {pinned}; run make constraints"
        assert requirement.specifier.contains(pinned[0]), f"{requirement}: pinned to {pinned[0]}; run make constraints"


def test_everything_that_is_installed_for_nsm_is_pinned() -> None:
    versions = pinned_versions({})
    waiting, seen = requirements("nsm", extra="dev"), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        assert name in versions, f"{requirement} is not pinned; run make constraints"
        waiting += requirements(name)
    assert len(seen) > 40, "the walk must go past the direct requirements"


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_lightning_versions_with_malware_are_refused(version: str) -> None:
    (lightning,) = [r for r in requirements("nsm") if r.name == "lightning"]
    assert not lightning.specifier.contains(version)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "TORCH_INDEX", "ARGS", "WORKERS"}
    environment = {key: value for key, value in os.environ.items() if key not in outer}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and a `python` that logs its arguments and makes copies of itself as .venv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/log\n'
        f'if [ "$2" = venv ]; then mkdir -p .venv/bin && cp {python} .venv/bin/python; fi\n'
    )
    python.chmod(0o755)
    return tmp_path


def calls(checkout: Path) -> list[str]:
    """What the stand-in `python` was asked for since the last look."""
    log = checkout / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if line.startswith("-m")]


def test_install_happens_once_and_again_when_its_inputs_change(checkout: Path) -> None:
    python = f"PYTHON={checkout}/python"
    assert make(checkout, python, "train").returncode == 0
    venv, install, train = calls(checkout)
    assert venv.startswith("-m venv")
    assert "--constraint constraints.txt" in install
    assert "--extra-index-url" not in install
    assert train == "-m nsm.train hardware=cpu"

    make(checkout, python, "train", "ARGS=seed=1")
    assert calls(checkout) == ["-m nsm.train hardware=cpu seed=1"]

    make(checkout, python, "test")
    install, tests = calls(checkout)
    assert install.endswith(".[dev]")
    assert tests.startswith("-m pytest")
    make(checkout, python, "train")
    assert calls(checkout) == ["-m nsm.train hardware=cpu"], "the dev install holds what training needs"

    for changed in ("pyproject.toml", "constraints.txt"):
        stamp = (checkout / ".venv/installed-dev").stat().st_mtime
        os.utime(checkout / changed, (stamp + 1, stamp + 1))
        os.utime(checkout / ".venv/installed-dev", (stamp, stamp))
        make(checkout, python, "test")
        assert any("pip install" in call for call in calls(checkout)), changed
        os.utime(checkout / changed, (0, 0))


def test_cpu_wheel_index_reaches_pip(checkout: Path) -> None:
    make(checkout, f"PYTHON={checkout}/python", "TORCH_INDEX=file:///wheels", "train")
    assert "--extra-index-url file:///wheels" in calls(checkout)[1]


def test_failed_install_is_tried_again(checkout: Path) -> None:
    python = checkout / "python"
    working = python.read_text()
    python.write_text(working + 'case "$*" in *"pip install"*) exit 1;; esac\n')
    assert make(checkout, f"PYTHON={python}", "train").returncode != 0
    assert "-m nsm.train hardware=cpu" not in calls(checkout)
    (checkout / ".venv/bin/python").write_text(working)
    make(checkout, f"PYTHON={python}", "train")
    assert len(calls(checkout)) == 2


@pytest.mark.parametrize(
    "script", [None, '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n'], ids=["missing", "old"]
)
def test_missing_or_old_python_is_named_with_a_remedy(checkout: Path, script: str | None) -> None:
    python = checkout / "old"
    if script is not None:
        python.write_text(script)
        python.chmod(0o755)
    run = make(checkout, f"PYTHON={python}", "train")
    assert run.returncode != 0
    assert "Python 3.10 or newer" in run.stderr
    assert str(python) in run.stderr
    assert "make PYTHON=" in run.stderr
    assert ("Python 3.9.1" in run.stderr) == (script is not None)
    assert not (checkout / ".venv").exists()
