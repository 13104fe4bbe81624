"""A volume inside a container: a copy that commits and reloads bring together with the committed content."""

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.fake_modal.records import VolumeRecord

Fingerprint = tuple[int, int, int]


def fingerprint(path: Path) -> Fingerprint:
    """What changes when a file is written."""
    stat = path.lstat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def fingerprints(directory: Path) -> dict[str, Fingerprint]:
    """Those of every file below a directory, by its path relative to it."""
    found = {}
    for parent, directories, files in os.walk(directory):
        links = [name for name in directories if Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in (*files, *links)):
            with contextlib.suppress(FileNotFoundError):  # the container may remove it meanwhile
                found[str(path.relative_to(directory))] = fingerprint(path)
    return found


def copy_file(source: Path, target: Path) -> None:
    """Put a copy in the place of ``target``, which is whole whenever somebody looks, as on Modal."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.copying")
    with contextlib.suppress(FileNotFoundError):  # as above
        shutil.copy2(source, beside, follow_symlinks=False)
        beside.replace(target)


def write_whole(target: Path, content: bytes) -> None:
    """Put a file in the place of ``target`` at once."""
    beside = target.with_name(f".{target.name}.copying")
    beside.write_bytes(content)
    beside.replace(target)


def copy_directories(source: Path, target: Path) -> None:
    """Make the directories of one tree in another, so that empty ones are not lost."""
    for parent, names, _ in os.walk(source):
        for path in (Path(parent, name) for name in names):
            if not path.is_symlink():
                (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)


def remove_file(path: Path, other: Path, root: Path) -> None:
    """Remove a file below ``root``, and those of its directories that are gone from the other tree as well."""
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == root or (other / parent.relative_to(root)).is_dir():
            return
        with contextlib.suppress(OSError):  # not empty
            parent.rmdir()


@dataclass
class Attachment:
    """A volume as one container sees it."""

    volume: VolumeRecord
    committed: Path
    copy: Path
    background_commits: bool
    read_only: bool
    copied: dict[str, Fingerprint] = field(default_factory=dict)
    """The copy's files as of the last commit or reload; what differs from it is uncommitted."""
    origin: dict[str, Fingerprint] = field(default_factory=dict)
    """The volume's files as of then; what differs from it came from others."""

    def fill(self) -> None:
        self.committed.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.committed, self.copy, symlinks=True, dirs_exist_ok=True)
        self.copied, self.origin = fingerprints(self.copy), fingerprints(self.committed)

    def commit(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Publish what changed: the last writer of a file wins. Returns the changed and the removed paths."""
        now = fingerprints(self.copy)
        changed = tuple(sorted(path for path, mark in now.items() if self.copied.get(path) != mark))
        removed = tuple(sorted(self.copied.keys() - now.keys()))
        for path in changed:
            copy_file(self.copy / path, self.committed / path)
        for path in removed:
            remove_file(self.committed / path, self.copy, self.committed)
        copy_directories(self.copy, self.committed)
        # Others' commits are still unseen here: only what this commit touched becomes known.
        published = fingerprints(self.committed)
        self.copied = now
        for path in (*changed, *removed):
            if path in published:
                self.origin[path] = published[path]
            else:
                self.origin.pop(path, None)
        return changed, removed

    def reload(self) -> None:
        """Take over what others committed; uncommitted changes of the same files stay."""
        now, published = fingerprints(self.copy), fingerprints(self.committed)
        untouched = {path for path in now.keys() | self.copied.keys() if now.get(path) == self.copied.get(path)}
        for path, mark in published.items():
            if self.origin.get(path) != mark and (path in untouched or path not in now):
                copy_file(self.committed / path, self.copy / path)
                self.copied[path] = fingerprint(self.copy / path)
        for path in self.origin.keys() - published.keys():
            if path in untouched:
                remove_file(self.copy / path, self.committed, self.copy)
                self.copied.pop(path, None)
        copy_directories(self.committed, self.copy)
        self.origin = published
