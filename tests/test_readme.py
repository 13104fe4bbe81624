"""What the README says is there: its commands compose, its map names every file."""

import re
import shlex
from pathlib import Path

import pytest

from nsm.cli import check_configurations
from nsm.train import CONF

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for block in BLOCKS
        for line in block.splitlines()
        if line.startswith("python -m nsm.train") and "--help" not in line
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    overrides = [word for word in shlex.split(command)[3:] if word != "--multirun"]
    on_any_machine = [word for word in overrides if word != "hardware=gpu"]
    assert check_configurations(on_any_machine, CONF, "train")


def test_map_names_every_module_and_nothing_else() -> None:
    tree = next(block for block in BLOCKS if block.startswith("Makefile"))
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    code = [*(ROOT / "nsm").rglob("*.py"), *(ROOT / "launchers").rglob("*.py")]
    there = {path.name for path in code} - {"__init__.py"}
    assert named == there


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE))
    assert {"train", "test"} <= named <= targets
