"""A volume inside a container: a copy that commits and reloads bring together with the committed content."""

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
    files = (path for path in directory.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(directory)): fingerprint(path) for path in files}


def copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


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
        self._remember()

    def _remember(self) -> None:
        self.copied, self.origin = fingerprints(self.copy), fingerprints(self.committed)

    def commit(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Publish what changed: the last writer of a file wins. Returns the changed and the removed paths."""
        now = fingerprints(self.copy)
        changed = tuple(sorted(path for path, mark in now.items() if self.copied.get(path) != mark))
        removed = tuple(sorted(self.copied.keys() - now.keys()))
        for path in changed:
            copy_file(self.copy / path, self.committed / path)
        for path in removed:
            (self.committed / path).unlink(missing_ok=True)
        for directory in (path for path in self.copy.rglob("*") if path.is_dir() and not path.is_symlink()):
            (self.committed / directory.relative_to(self.copy)).mkdir(parents=True, exist_ok=True)
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
                (self.copy / path).unlink(missing_ok=True)
                self.copied.pop(path, None)
        self.origin = published
