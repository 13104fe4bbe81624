"""The volume as a client sees it: small files read and written, folders of jobs brought home."""

import asyncio
import io
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from hydra_plugins.nsm_modal.config import LauncherError

TEXT = (".yaml", ".json", ".log", ".txt")
"""Files in which a container's paths are replaced by those of this machine."""
DOWNLOADS = 8
"""Files fetched at once."""


class VolumeClient:
    """A volume by name.

    Args:
        name: on Modal.
        mount: where containers see it.
        version: that it is made with, and must have; None for any.
        create: make it if it does not exist.
    """

    def __init__(self, name: str, mount: str = "/", *, version: int | None = None, create: bool) -> None:
        import modal

        self.name, self.mount = name, mount
        self._volume = modal.Volume.from_name(name, create_if_missing=create, version=version)

    def at(self, mount: str) -> "VolumeClient":
        """The same volume, seen elsewhere by containers."""
        return VolumeClient(self.name, mount, create=False)

    async def check_exists(self) -> None:
        """Raise :class:`LauncherError` if there is no such volume."""
        import modal

        try:
            await self._volume.hydrate.aio()
        except modal.exception.NotFoundError as error:
            raise LauncherError(
                f"there is no volume {self.name} on Modal yet: the first launch makes it, and modal volume list names "
                "those there are"
            ) from error

    async def read(self, path: str) -> bytes | None:
        """Content of a file; None if there is none."""
        content = io.BytesIO()
        try:
            await self._volume.read_file_into_fileobj.aio(path, content)
        except FileNotFoundError:
            return None
        return content.getvalue()

    async def write(self, path: str, content: str) -> None:
        """Write a file, in place of one that may be there."""
        async with self._volume.batch_upload.aio(force=True) as upload:
            upload.put_file(io.BytesIO(content.encode()), path)

    async def files(self, folder: str) -> list[Any]:
        """Entries of every file below a folder; none if it does not exist."""
        import modal
        from modal.types import FileEntryType

        try:
            found = await self._volume.listdir.aio(folder, recursive=True)
        except (FileNotFoundError, modal.exception.NotFoundError):
            return []
        return [entry for entry in found if entry.type == FileEntryType.FILE]

    async def remove(self, folder: str) -> None:
        """Remove a folder and all in it."""
        await self._volume.remove_file.aio(folder, recursive=True)

    async def bring_home(self, folder: str, home: Path, *, leave: Sequence[str] = ()) -> int:
        """Copy a job's folder to ``home``; returns how many files came.

        A file that is already there, and as old as on the volume, stays. Each file is written beside and renamed, so
        that an interruption leaves nothing half-written.

        Args:
            folder: on the volume.
            leave: patterns of file names that stay away.
        """
        home = home.absolute()
        home.mkdir(parents=True, exist_ok=True)
        entries = [
            entry
            for entry in await self.files(folder)
            if not any(fnmatch(PurePosixPath(entry.path).name, pattern) for pattern in (*leave, "*.part"))
        ]
        slots = asyncio.Semaphore(DOWNLOADS)

        async def fetch(entry: Any) -> bool:
            target = home / PurePosixPath("/", entry.path).relative_to(PurePosixPath("/", folder))
            if not target.resolve().is_relative_to(home.resolve()):
                raise LauncherError(f"the volume {self.name} holds {entry.path}, which would be written outside {home}")
            if target.exists() and int(target.stat().st_mtime) == entry.mtime:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.part")
            async with slots:
                with beside.open("wb") as file:
                    await self._volume.read_file_into_fileobj.aio(entry.path, file)
            if target.suffix in TEXT:
                there = str(PurePosixPath(self.mount, folder))
                beside.write_bytes(beside.read_bytes().replace(there.encode(), str(home).encode()))
            os.utime(beside, (entry.mtime, entry.mtime))
            os.replace(beside, target)
            return True

        return sum(await asyncio.gather(*map(fetch, entries)))
