"""A container's file system: its own root directory, with this machine's programs and Python environment as the image.

Inside a mount namespace of its own a container is chrooted into a directory that holds what the function asked for
(mounted files, volumes, an empty /root and /tmp). Only system directories and the running Python environment are bound
into it, so neither the checkout nor the client's files are there: an editable install leads to a path that does not
exist in the container. System directories and site-packages are the machine's own, writable where the user may write.
Processes, network and users are not isolated. A container dies with the server, but what it started itself survives if
the server is killed by SIGKILL.
"""

import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SYSTEM_DIRECTORIES = tuple(
    Path("/", name) for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev", "proc", "sys")
)

CHECKOUT = Path(__file__).resolve().parents[2]

NAMESPACES = (
    ("unshare", "--mount"),
    ("unshare", "--user", "--map-root-user", "--mount"),
)
"""As root, and for those who are not."""

PROGRAMS = ("unshare", "setpriv", "chroot", "mount", "env")


def environment_directories() -> tuple[Path, ...]:
    """Where the running interpreter and its packages lie, apart from system directories."""
    prefixes = {Path(p) for prefix in (sys.prefix, sys.base_prefix) for p in (prefix, Path(prefix).resolve())}
    return tuple(sorted(p for p in prefixes if not any(p.is_relative_to(d) for d in SYSTEM_DIRECTORIES)))


def _bind_commands(root: Path, directories: Sequence[Path]) -> list[str]:
    """Shell commands that make directories of this machine visible below ``root``; symlinks are made at once."""
    commands = []
    for directory in directories:
        target = root / directory.relative_to("/")
        if directory.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(directory.readlink())
        elif directory.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            commands.append(f"mount --rbind '{directory}' '{target}'")
    return commands


def _wrap(namespace: Sequence[str], root: Path, commands: Sequence[str], command: Sequence[str]) -> list[str]:
    # Every step replaces the one before, so the process that is started is the container and takes its signals; it
    # dies with the thread that started it.
    script = "set -e\n" + "\n".join(commands) + f"\nexec setpriv --pdeathsig KILL chroot '{root}' \"$@\""
    return [*namespace, "--", "sh", "-c", script, "sh", *command]


@functools.cache
def _namespace() -> tuple[tuple[str, ...], str]:
    """The way to make a namespace here, or the empty one and why there is none."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return (), f"no {', '.join(missing)} on this machine"
    if any(CHECKOUT.is_relative_to(d) for d in (*SYSTEM_DIRECTORIES, *environment_directories())):
        return (), f"the checkout {CHECKOUT} lies in a directory that containers see"
    errors = []
    for namespace in NAMESPACES:
        with tempfile.TemporaryDirectory(prefix="fake-modal-") as directory:
            root = Path(directory)
            command = _wrap(namespace, root, _bind_commands(root, SYSTEM_DIRECTORIES), ["true"])
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return namespace, ""
        errors.append(f"{' '.join(namespace)}: {result.stderr.strip()}")
    return (), f"mount namespaces are not allowed here ({'; '.join(errors)})"


def why_not() -> str | None:
    """Why containers cannot be isolated on this machine, None if they can."""
    return _namespace()[1] or None


class RootDirectory:
    """The root file system of one container."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_only: list[Path] = []
        for directory in ("root", "tmp", "var/tmp"):
            (path / directory).mkdir(parents=True)
        for directory in ("tmp", "var/tmp"):
            (path / directory).chmod(0o1777)

    def write(self, path: str, data: bytes, mode: int | None) -> None:
        """Put a file where the container sees it under this absolute path."""
        if any(Path(path).is_relative_to(d) for d in (*SYSTEM_DIRECTORIES, *environment_directories())):
            raise ValueError(f"{path} lies in a directory of this machine that the stand-in shares with containers")
        target = self.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if mode is not None:
            target.chmod(mode & 0o777)

    def protect(self, directory: Path) -> None:
        """Make a directory read-only inside the container."""
        self._read_only.append(directory)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs another one in this root directory; its process id is the other one's."""
        namespace, reason = _namespace()
        if not namespace:
            raise RuntimeError(f"cannot isolate containers: {reason}")
        binds = _bind_commands(self.path, (*SYSTEM_DIRECTORIES, *environment_directories()))
        for directory in self._read_only:
            binds += [f"mount --bind '{directory}' '{directory}'", f"mount -o remount,bind,ro '{directory}'"]
        return _wrap(namespace, self.path, binds, command)
