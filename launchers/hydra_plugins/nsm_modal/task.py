"""How a task and its configuration travel to a container: the task by name, the configuration pickled.

They travel as arguments of a call, from the client's memory to the container's; nothing here is read from the volume,
where others can write. A function that has no name to be found under (defined in another function, or in a notebook)
goes by value, which needs the same Python on both sides.
"""

import importlib
import importlib.util
import inspect
import logging
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from hydra.types import TaskFunction
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer

log = logging.getLogger(__name__)
HYDRA_RESOLVERS = ("now", "hydra", "python_version")


@dataclass(frozen=True)
class TaskName:
    """Where a task is found: a module, or a script that was run, and a name in it."""

    qualname: str
    module: str | None
    """None for a script."""
    script: str | None
    """Path here of the script that is the main module; None for a module."""

    @classmethod
    def of(cls, task: TaskFunction) -> "TaskName | None":
        """Name of ``task``; None if what is found under its name is something else."""
        module, qualname = getattr(task, "__module__", None), getattr(task, "__qualname__", "<")
        if module is None or "<" in qualname or module not in sys.modules:
            return None
        found: Any = sys.modules[module]
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if found is None or inspect.unwrap(found) is not task:
            return None
        if module != "__main__":
            return cls(qualname, module, None)
        main = sys.modules["__main__"]
        if main.__spec__ is not None:  # python -m package.module
            return cls(qualname, main.__spec__.name, None)
        path = getattr(main, "__file__", None)
        return None if path is None else cls(qualname, None, str(Path(path).resolve()))

    @property
    def package(self) -> str | None:
        """The top-level package or module to be shipped; None for a script."""
        return None if self.module is None else self.module.partition(".")[0]

    def to_dict(self) -> dict[str, str | None]:
        """As plain values; a script by its file name, which is all that the container knows of its path."""
        return {
            "qualname": self.qualname,
            "module": self.module,
            "script": self.script and Path(self.script).name,
        }


def pack(task: TaskFunction, name: TaskName | None, config: DictConfig) -> bytes:
    """Everything that :func:`unpack` needs beside the task's name."""
    value = None if name else cloudpickle.dumps(task)
    try:
        packed = pickle.dumps(config)  # by reference: a class of the main module stays that class
    except (pickle.PicklingError, AttributeError, TypeError):
        packed = cloudpickle.dumps(config)
    return pickle.dumps({"config": packed, "resolvers": _own_resolvers(), "task": value})


def unpack(name: Mapping[str, str | None] | None, payload: bytes) -> tuple[TaskFunction, DictConfig]:
    """The task and its configuration, in the container."""
    parts = pickle.loads(payload)
    if name is None:
        task = cloudpickle.loads(parts["task"])
    else:
        found: Any = _import_main(name)
        for part in str(name["qualname"]).split("."):
            found = getattr(found, part)
        task = inspect.unwrap(found)
    for key, resolver in parts["resolvers"].items():
        BaseContainer._resolvers.setdefault(key, cloudpickle.loads(resolver))
    return task, pickle.loads(parts["config"])


def _own_resolvers() -> dict[str, bytes]:
    """OmegaConf's resolvers that the app added: values that are looked up late need them in the container too."""
    packed = {}
    for key, resolver in BaseContainer._resolvers.items():
        if key.startswith("oc.") or key in HYDRA_RESOLVERS:
            continue
        try:
            packed[key] = cloudpickle.dumps(resolver)
        except (pickle.PicklingError, TypeError) as error:
            log.warning("the resolver %s cannot travel to Modal: %s", key, error)
    return packed


def _import_main(name: Mapping[str, str | None]) -> ModuleType:
    """Import what was the main module where the job was launched, under another name than ``__main__``, so that its
    guard stays shut, and let pickles that speak of ``__main__`` find it: as multiprocessing does in a spawned child."""
    if name["module"] is not None:
        module = importlib.import_module(name["module"])
    else:
        path = Path("/root", str(name["script"]))
        spec = importlib.util.spec_from_file_location("__mp_main__", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["__mp_main__"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    sys.modules["__main__"] = module
    return module
