"""Feed runs bad input: each case ends in success or in one clear error, never in a traceback or a lost file.

Hypothesis draws the cases: values and overrides on the command line, and files of the data cache, of checkpoints, of
results and of the folder itself, damaged.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from nsm import checkpoints, cli, locks
from nsm.module import NSMModule
from nsm.storage import UNFINISHED
from nsm.train import CONF, main, train
from tests.conftest import TEST_CONF
from tests.faults.kills import SMALL

TOY = (f"hydra.searchpath=[file://{TEST_CONF}]", "domain=toy", "model=tiny", "schedule=smoke", "hardware=cpu")
TOY += ("hardware.threads=1", "schedule.batch_size=32")
REAL = ("schedule=smoke", "schedule.max_epochs=1", "schedule.limit_batches=1", "schedule.batch_size=8")
REAL += ("schedule.probe_steps=1", "model.node_features=8", "hardware=cpu", "hardware.threads=1")
VALUES = st.one_of(
    st.sampled_from(["nan", ".inf", "-.inf", "-1", "0", "1", "2", "3", "0.5", "-0.5", "1e300", "1e-300", "true"]),
    st.sampled_from(["null", "''", "[]", "{}", "[1,2]", "{a:1}", "text", "none", "???", "1_0", "0x10", "1e", "--"]),
    st.sampled_from(["${seed}", "${nowhere}", "${oc.env:NOWHERE}", "${", "${domain}", "${..}", "\\", "'", "[", "a=b"]),
    st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), max_size=8),
)
OVERRIDES = st.one_of(
    st.text(st.sampled_from("abz.=+~@:,[]{}()$\"'\\ é0-#!*%&\t"), min_size=1, max_size=12).filter(
        lambda text: not text.startswith("-")
    ),
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "+", "++", "~"]),
        st.sampled_from(["domain", "model", "schedule", "hardware", "experiment", "nowhere", "task", "hydra/launcher"]),
        st.sampled_from(["", "nowhere", "toy", "flat", "smoke", "null", "[a]", "a100", "../x", "3", "basic"]),
    ),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~"]), st.sampled_from(["seed", "model.x", "x.y"]), VALUES),
)


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Ground:
    """What the cases start from, made once: a complete run, one that was killed, their data, another model's run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bomb = folder, folder / "exploded"
        self.overrides = (*TOY, f"domain.cache_dir={folder / 'data'}")
        configuration = _compose(self.overrides)
        train(configuration, folder / "complete")
        with mock.patch.object(NSMModule, "on_train_epoch_start", _killed), contextlib.suppress(_KilledError):
            train(configuration, folder / "stopped")
        train(_compose([*self.overrides, "model=flat", "model.node_features=8"]), folder / "other")
        self.test = json.loads((folder / "complete" / "final_results.json").read_text())["test"]
        self.keys = {name: list(_leaves(_compose(overrides))) for name, overrides in self.domains().items()}

    def domains(self) -> dict[str, Sequence[str]]:
        """The command line of a short run of each domain."""
        real = {name: [f"domain={name}", *REAL, *small] for name, small in SMALL.items()}
        cached = {name: [*overrides, f"domain.cache_dir={self.folder / 'data'}"] for name, overrides in real.items()}
        return {"toy": self.overrides, **cached}


class _KilledError(Exception):
    pass


def _killed(self: NSMModule) -> None:
    if self.current_epoch == 1:
        raise _KilledError


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", overrides=list(overrides))


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        if OmegaConf.is_dict(node[name]):
            yield from _leaves(node[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def answer(arguments: Sequence[str]) -> tuple[str, str]:
    """What ``python -m nsm.train`` answers in this process: ``succeeded``, ``refused`` or ``WRONG``, and its words."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    silence = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(sys, "argv", ["nsm.train", *arguments]))
            stack.enter_context(mock.patch.dict(os.environ))
            stack.enter_context(mock.patch.object(locks, "WATCH", 0.1))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            cli.run(main, CONF, "train")
    except SystemExit as end:
        if not end.code:
            return "succeeded", ""
        message = str(end.code)
        clear = message.startswith("error: ") and "Traceback" not in message
        return ("refused" if clear else "WRONG"), f"{message!r} of {arguments[len(TOY) :]}"
    except BaseException as error:
        return "WRONG", f"{error!r} of {arguments[len(TOY) :]}"
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers, root.level = handlers, level
    return "succeeded", ""


def try_value(data: st.DataObject, ground: Ground, folder: Path) -> tuple[str, str]:
    """One setting, any value."""
    name, overrides = data.draw(st.sampled_from(sorted(ground.domains().items())))
    key = data.draw(st.sampled_from(ground.keys[name]))
    return answer([*overrides, f"hydra.run.dir={folder / 'run'}", f"{key}={data.draw(VALUES)}"])


def try_override(data: st.DataObject, ground: Ground, folder: Path) -> tuple[str, str]:
    """Anything on the command line."""
    return answer([*ground.overrides, f"hydra.run.dir={folder / 'run'}", data.draw(OVERRIDES)])


def try_cache(data: st.DataObject, ground: Ground, folder: Path) -> tuple[str, str]:
    """Damaged data."""
    shutil.copytree(ground.folder / "data", folder / "data")
    done = [damage(data, path, ground) for path in data.draw(_some(sorted((folder / "data").glob("toy-*"))))]
    with unharmed(folder, done):
        return answer([*TOY, f"domain.cache_dir={folder / 'data'}", f"hydra.run.dir={folder / 'run'}"])


def try_checkpoint(data: st.DataObject, ground: Ground, folder: Path) -> tuple[str, str]:
    """Damaged checkpoints."""
    return _try_files(data, ground, folder, "*.ckpt")


def try_results(data: st.DataObject, ground: Ground, folder: Path) -> tuple[str, str]:
    """Damaged results and histories."""
    return _try_files(data, ground, folder, "*.json")


def try_folder(data: st.DataObject, ground: Ground, folder: Path) -> tuple[str, str]:
    """A run's folder in which anything is missing, or is a folder, or a file, that should be none."""
    return _try_files(data, ground, folder, "*", replace=True)


def _try_files(
    data: st.DataObject, ground: Ground, folder: Path, pattern: str, replace: bool = False
) -> tuple[str, str]:
    run = folder / "run"
    shutil.copytree(ground.folder / data.draw(st.sampled_from(["stopped", "complete"])), run)
    there = sorted(run.glob(pattern))
    there += [run / ".lock", run / "train.log", run / ".hydra"] if replace else []
    done = [(misplace if replace else damage)(data, path, ground) for path in data.draw(_some(there))]
    with unharmed(folder, done):
        ended, words = answer([*ground.overrides, f"hydra.run.dir={run}"])
        if ended == "succeeded":
            results = json.loads((run / "final_results.json").read_text())
            same = (results["status"], results.get("test")) == ("completed", ground.test)
            assert same, f"other results after {done}"
    return ended, f"{words} after {done}"


def _some(paths: list[Path]) -> st.SearchStrategy[list[Path]]:
    return st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True)


def damage(data: st.DataObject, path: Path, ground: Ground) -> str:
    """Replace what a file holds, and say how."""
    content = path.read_bytes()
    somewhere = st.integers(0, max(0, len(content) - 1))

    def flipped() -> bytes:
        changed = bytearray(content)
        for position in data.draw(st.lists(somewhere, min_size=1, max_size=4)):
            changed[position] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(changed)

    def torch_bomb() -> bytes:
        buffer = io.BytesIO()
        torch.save({"state_dict": Bomb(ground.bomb)}, buffer)
        return buffer.getvalue()

    def sealed_bomb() -> bytes:
        checkpoints.save({"state_dict": Bomb(ground.bomb)}, path)
        return path.read_bytes()

    def sealed(state: Any) -> bytes:
        checkpoints.save(state, path)
        return path.read_bytes()

    ways: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: content[: data.draw(somewhere)],
        "flipped": flipped,
        "empty": lambda: b"",
        "random": lambda: data.draw(st.binary(max_size=64)),
        "zeros": lambda: bytes(len(content)),
        "doubled": lambda: content * 2,
        "pickled code": lambda: pickle.dumps(Bomb(ground.bomb)),
        "code in an archive": torch_bomb,
        "code under a seal": sealed_bomb,
        "another model's": lambda: (ground.folder / "other" / "last.ckpt").read_bytes(),
        "no run's": lambda: sealed({"state_dict": {}}),
        "no mapping": lambda: sealed([1, 2]),
        "other json": lambda: data.draw(
            st.sampled_from([b"[]", b"{}", b"null", b"3", b'{"status": "completed"}', b'{"status": []}', b"[" * 5000])
        ),
        "results without sense": lambda: json.dumps(
            {"status": "completed", "val": data.draw(st.sampled_from([None, 3, {}, []])), "config_hash": None}
        ).encode(),
    }
    way = data.draw(st.sampled_from(sorted(ways)))
    path.write_bytes(ways[way]())
    return f"{path.name} {way}"


def misplace(data: st.DataObject, path: Path, ground: Ground) -> str:
    """Put something else where a file or a folder is, and say what."""
    way = data.draw(st.sampled_from(["missing", "folder", "file", "nowhere", "itself"]))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if way == "folder":
        (path / "inside").mkdir(parents=True)
    elif way == "file":
        path.write_bytes(data.draw(st.binary(max_size=8)))
    elif way in ("nowhere", "itself"):
        path.symlink_to("/nowhere/at/all" if way == "nowhere" else path)
    return f"{path.name} {way}"


@contextlib.contextmanager
def unharmed(folder: Path, done: list[str]) -> Iterator[None]:
    """Fail if a file that is sound before is lost or damaged afterwards, or if anything is left half-written.

    Args:
        folder: of the case.
        done: to it, for the message.
    """
    before = _sound(folder)
    yield
    lost = before - _sound(folder)
    assert not lost, f"lost or damaged after {done}: {lost}"
    left = [path for path in folder.rglob("*") if path.suffix == UNFINISHED]
    assert not left, f"left behind after {done}: {left}"


def _sound(folder: Path) -> set[Path]:
    """The files that hold what they should."""
    sound = set()
    for path in folder.rglob("*"):
        if not path.is_file() or path.parent.name in (".hydra", "tensorboard"):
            continue
        try:
            if path.suffix == ".ckpt":
                checkpoints.load(path)
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".pt":
                digest = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
                assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        except Exception:
            continue
        sound.add(path)
    return sound - {path for path in sound if path.name == ".lock"}


KINDS = {
    "values": try_value,
    "overrides": try_override,
    "data caches": try_cache,
    "checkpoints": try_checkpoint,
    "run folders": try_folder,
    "results": try_results,
}


def feed(number: int, *, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Try ``number`` cases, or a few more, spread over the kinds; counts how each ended, and prints what is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    ground = Ground(folder / "ground")
    counted = {}
    for kind, try_one in KINDS.items():
        counts = Counter[str]()
        some = settings(
            max_examples=-(-number // len(KINDS)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seeded(seed)(some(given(st.data())(_counting(kind, try_one, ground, folder / "case", counts))))()
        counted[kind] = counts
        print(f"{kind}: {_ends(counts)}", flush=True)
    return counted


def _counting(
    kind: str, try_one: Any, ground: Ground, case: Path, counts: Counter[str]
) -> Callable[[st.DataObject], None]:
    """A test for Hypothesis that never fails: what is wrong is counted and printed, and the next case is tried."""

    def one(data: st.DataObject) -> None:
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        here = Path.cwd()
        os.chdir(case)  # where a cache_dir that was drawn leads
        try:
            ended, words = try_one(data, ground, case)
        except AssertionError as error:
            ended, words = "WRONG", str(error)
        finally:
            os.chdir(here)
        if ground.bomb.exists():
            ground.bomb.unlink()
            ended, words = "WRONG", "code in a file was run"
        counts[ended] += 1
        if ended == "WRONG":
            print(f"{kind}: {words}", flush=True)

    return one


def wrong(counted: dict[str, Counter[str]]) -> int:
    """How many cases ended in anything but success or a clear error."""
    return sum(counts["WRONG"] for counts in counted.values())


def told(counted: dict[str, Counter[str]]) -> str:
    """The sums, in words."""
    total: Counter[str] = sum(counted.values(), Counter())
    return f"{sum(total.values())} cases, {_ends(total)}"


def _ends(counts: Counter[str]) -> str:
    return f"{counts['succeeded']} succeeded, {counts['refused']} refused, {counts['WRONG']} wrong"
