"""Volumes: the committed content, as clients see it, and commits and reloads of containers."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.fake_modal.apps import ENVIRONMENT
from tests.fake_modal.attachments import Attachment, write_whole
from tests.fake_modal.http import inside
from tests.fake_modal.process import processes_in_session, uses
from tests.fake_modal.records import CommitRecord, ContainerRecord, VolumeRecord
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.state import State

BLOCK_SIZE = 8 << 20
"""Bytes; modal.volume counts on this size."""


class Volumes:
    """Volumes by name, their files, commits and reloads."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._attachments: dict[tuple[str, str], Attachment] = {}

    def attach(self, container: ContainerRecord, mount: pb.VolumeMount) -> Path:
        """Give a container its own copy of a volume, at the mount path in its root file system."""
        volume = self._find(mount.volume_id)
        attachment = Attachment(
            volume=volume,
            committed=inside(volume.directory, mount.sub_path),
            copy=container.directory / mount.mount_path.lstrip("/"),
            background_commits=mount.allow_background_commits,
            read_only=mount.read_only,
        )
        attachment.fill()
        self._attachments[container.container_id, mount.volume_id] = attachment
        return attachment.copy

    def attached(self, container: ContainerRecord) -> list[Attachment]:
        return [a for (container_id, _), a in self._attachments.items() if container_id == container.container_id]

    async def commit(self, container: ContainerRecord, volume_id: str, *, background: bool) -> None:
        attachment = self._attachment(container, volume_id)
        if attachment.read_only:
            return
        if self._state.settings.commit_delay:
            await asyncio.sleep(self._state.settings.commit_delay)
            if not container.alive:
                return
        changed, removed = attachment.commit()
        self._state.commits.append(
            CommitRecord(
                container_id=container.container_id,
                volume_id=volume_id,
                background=background,
                changed=changed,
                removed=removed,
            )
        )
        self._state.changes.notify()

    def find_by_name(self, name: str) -> VolumeRecord | None:
        named = (volume for volume in self._state.volumes.values() if name and volume.name == name)
        return next((volume for volume in named if not volume.deleted), None)

    def _attachment(self, container: ContainerRecord, volume_id: str) -> Attachment:
        try:
            return self._attachments[container.container_id, volume_id]
        except KeyError:
            raise GRPCError(
                Status.NOT_FOUND, f"Volume {volume_id} is not mounted in {container.container_id}"
            ) from None

    def _find(self, volume_id: str) -> VolumeRecord:
        if volume_id not in self._state.volumes or self._state.volumes[volume_id].deleted:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id} not found")
        return self._state.volumes[volume_id]

    def _metadata(self, volume: VolumeRecord) -> pb.VolumeMetadata:
        info = pb.CreationInfo(created_at=volume.created_at)
        version = pb.VolumeFsVersion.ValueType(volume.version)
        return pb.VolumeMetadata(version=version, name=volume.name, creation_info=info)

    @rpc("VolumeGetOrCreate")
    async def get_or_create(self, request: pb.VolumeGetOrCreateRequest, caller: Caller) -> pb.VolumeGetOrCreateResponse:
        volume = self.find_by_name(request.deployment_name)
        if volume is None:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found in environment 'main'")
            volume = self.create(request.deployment_name, request.version)
        elif request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{volume.name}' already exists")
        metadata = self._metadata(volume)
        return pb.VolumeGetOrCreateResponse(volume_id=volume.volume_id, version=metadata.version, metadata=metadata)

    def create(self, name: str, version: int = 0) -> VolumeRecord:
        """A new volume, of version 1 unless said otherwise."""
        volume_id = self._state.new_id("vo")
        directory = self._state.directory / "volumes" / volume_id
        directory.mkdir(parents=True)
        volume = VolumeRecord(volume_id=volume_id, name=name, version=version or 1, directory=directory)
        self._state.volumes[volume_id] = volume
        return volume

    @rpc("VolumeGetById")
    async def get_by_id(self, request: pb.VolumeGetByIdRequest, caller: Caller) -> pb.VolumeGetByIdResponse:
        volume = self._find(request.volume_id)
        return pb.VolumeGetByIdResponse(volume_id=volume.volume_id, metadata=self._metadata(volume))

    @rpc("VolumeHeartbeat")
    async def heartbeat(self, request: pb.VolumeHeartbeatRequest, caller: Caller) -> Empty:
        return Empty()

    @rpc("VolumeList")
    async def list_volumes(self, request: pb.VolumeListRequest, caller: Caller) -> pb.VolumeListResponse:
        """Newest first, in pages before a time, as modal.volume._VolumeManager.list asks for them."""
        page = request.pagination
        volumes = [volume for volume in self._state.volumes.values() if volume.name and not volume.deleted]
        volumes.sort(key=lambda volume: volume.created_at, reverse=True)
        wanted = [v for v in volumes if (not page.created_before or v.created_at < page.created_before)]
        items = [
            pb.VolumeListItem(label=v.name, volume_id=v.volume_id, created_at=v.created_at, metadata=self._metadata(v))
            for v in wanted[: page.max_objects or None]
        ]
        return pb.VolumeListResponse(items=items, environment_name=ENVIRONMENT)

    @rpc("VolumeDelete")
    async def delete(self, request: pb.VolumeDeleteRequest, caller: Caller) -> Empty:
        volume = self._find(request.volume_id)
        volume.deleted = True
        shutil.rmtree(volume.directory)
        return Empty()

    @rpc("VolumeRename")
    async def rename(self, request: pb.VolumeRenameRequest, caller: Caller) -> Empty:
        self._find(request.volume_id).name = request.name
        return Empty()

    @rpc("VolumeCommit")
    async def commit_from_container(self, request: pb.VolumeCommitRequest, caller: Caller) -> pb.VolumeCommitResponse:
        """The client reloads after a commit unless told otherwise, and commits succeed while files are open."""
        container = caller.in_container()
        await self.commit(container, request.volume_id, background=False)
        return pb.VolumeCommitResponse(skip_reload=self._in_use(container, request.volume_id))

    @rpc("VolumeReload")
    async def reload(self, request: pb.VolumeReloadRequest, caller: Caller) -> Empty:
        container = caller.in_container()
        if self._in_use(container, request.volume_id):
            # The words by which modal.volume recognises it.
            raise GRPCError(Status.FAILED_PRECONDITION, "there are open files preventing the operation")
        self._attachment(container, request.volume_id).reload()
        return Empty()

    def _in_use(self, container: ContainerRecord, volume_id: str) -> bool:
        directory = self._attachment(container, volume_id).copy
        return any(uses(pid, directory) for pid in processes_in_session(container.pid))

    @rpc("VolumeListFiles", "VolumeListFiles2")
    async def list_files(
        self, request: pb.VolumeListFilesRequest | pb.VolumeListFiles2Request, caller: Caller
    ) -> AsyncIterator[Message]:
        directory = self._find(request.volume_id).directory
        start = inside(directory, request.path)
        if not start.exists():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path!r}")
        found = [start] if start.is_file() else start.rglob("*") if request.recursive else start.iterdir()
        for path in sorted(found):
            kinds = pb.FileEntry.FileType
            kind = kinds.SYMLINK if path.is_symlink() else kinds.DIRECTORY if path.is_dir() else kinds.FILE
            stat = path.lstat()
            entry = pb.FileEntry(
                path=str(path.relative_to(directory)), type=kind, size=stat.st_size, mtime=int(stat.st_mtime)
            )
            yield caller.response_type(entries=[entry])

    @rpc("VolumeGetFile2")
    async def get_file(self, request: pb.VolumeGetFile2Request, caller: Caller) -> pb.VolumeGetFile2Response:
        """Answers with URLs of blocks (see http.py)."""
        volume = self._find(request.volume_id)
        file = inside(volume.directory, request.path)
        if not file.is_file():
            raise GRPCError(Status.NOT_FOUND, f"No such file: {request.path!r}")
        size = file.stat().st_size
        end = min(size, request.start + request.len) if request.len else size
        cuts = [request.start, *range((request.start // BLOCK_SIZE + 1) * BLOCK_SIZE, end, BLOCK_SIZE), end]
        url = f"{self._state.http_url}/volumes/{volume.volume_id}/{request.path.strip('/')}"
        urls = [f"{url}?start={a}&length={b - a}" for a, b in itertools.pairwise(cuts) if b > a]
        return pb.VolumeGetFile2Response(get_urls=urls, size=size, start=request.start, len=end - request.start)

    def _target(self, volume: VolumeRecord, path: str, keep_existing: bool) -> Path:
        target = inside(volume.directory, path)
        if target.is_dir() or (keep_existing and target.exists()):
            raise GRPCError(Status.ALREADY_EXISTS, f"{path}: already exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @rpc("VolumePutFiles")
    async def put_files(self, request: pb.VolumePutFilesRequest, caller: Caller) -> Empty:
        """Version 1: the contents were uploaded by MountPutFile."""
        volume = self._find(request.volume_id)
        targets = [self._target(volume, f.filename, request.disallow_overwrite_existing_files) for f in request.files]
        for file, target in zip(request.files, targets, strict=True):
            write_whole(target, self._state.contents[file.sha256_hex])
        return Empty()

    @rpc("VolumePutFiles2")
    async def put_files2(self, request: pb.VolumePutFiles2Request, caller: Caller) -> pb.VolumePutFiles2Response:
        """Version 2: asks for the blocks it lacks; once it has all, the client calls again."""
        volume = self._find(request.volume_id)
        missing = [
            pb.VolumePutFiles2Response.MissingBlock(
                file_index=file_index,
                block_index=block_index,
                put_url=f"{self._state.http_url}/blocks/{block.contents_sha256.hex()}",
            )
            for file_index, file in enumerate(request.files)
            for block_index, block in enumerate(file.blocks)
            if block.contents_sha256.hex() not in self._state.contents
        ]
        if missing:
            return pb.VolumePutFiles2Response(missing_blocks=missing)
        targets = [self._target(volume, f.path, request.disallow_overwrite_existing_files) for f in request.files]
        for file, target in zip(request.files, targets, strict=True):
            lengths = [min(BLOCK_SIZE, file.size - start) for start in range(0, file.size, BLOCK_SIZE)]
            # The client leaves out zeros at the end of a block.
            blocks = [self._state.contents[block.contents_sha256.hex()] for block in file.blocks]
            write_whole(target, b"".join(b.ljust(n, b"\0") for b, n in zip(blocks, lengths, strict=True)))
        return pb.VolumePutFiles2Response()

    @rpc("VolumeRemoveFile", "VolumeRemoveFile2")
    async def remove_file(
        self, request: pb.VolumeRemoveFileRequest | pb.VolumeRemoveFile2Request, caller: Caller
    ) -> Empty:
        path = inside(self._find(request.volume_id).directory, request.path)
        if path.is_dir() and not path.is_symlink():
            if not request.recursive:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory: pass recursive=True")
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            path.unlink()
        else:
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path!r}")
        return Empty()

    @rpc("VolumeCopyFiles", "VolumeCopyFiles2")
    async def copy_files(
        self, request: pb.VolumeCopyFilesRequest | pb.VolumeCopyFiles2Request, caller: Caller
    ) -> Empty:
        directory = self._find(request.volume_id).directory
        target = inside(directory, request.dst_path)
        for source_path in request.src_paths:
            source = inside(directory, source_path)
            if not source.exists():
                raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {source_path!r}")
            place = target / source.name if target.is_dir() else target
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, place, symlinks=True)
            else:
                shutil.copy2(source, place)
        return Empty()
