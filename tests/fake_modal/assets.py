"""Images, mounts, secrets and blobs: what a client uploads before it calls anything."""

import shlex

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.fake_modal.apps import ENVIRONMENT, IMAGE_BUILDER_VERSION
from tests.fake_modal.functions import image_gpus
from tests.fake_modal.records import ImageRecord, MountRecord, SecretRecord
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.state import State


def layers(state: State, image_id: str) -> list[ImageRecord]:
    """The layers of an image, its base first."""
    if not image_id:
        return []
    image = state.images[image_id]
    return [layer for base in image.base_image_ids for layer in layers(state, base)] + [image]


def environment(image_layers: list[ImageRecord]) -> dict[str, str]:
    """The variables that the ENV lines of the layers set."""
    variables: dict[str, str] = {}
    for line in (line for layer in image_layers for line in layer.dockerfile_commands):
        if line.startswith("ENV "):
            for word in shlex.split(line.removeprefix("ENV ")):
                name, _, value = word.partition("=")
                variables[name] = value
    return variables


def working_directory(image_layers: list[ImageRecord]) -> str:
    """Where the last WORKDIR line of the layers leads, else Modal's default."""
    lines = [line for layer in image_layers for line in layer.dockerfile_commands if line.startswith("WORKDIR ")]
    return shlex.split(lines[-1])[1] if lines else "/root"


class Assets:
    """Keeps what is uploaded. Images are recorded, never built: a container sees this machine's site-packages."""

    def __init__(self, state: State) -> None:
        self._state = state

    @rpc("ImageGetOrCreate")
    async def get_image(self, request: pb.ImageGetOrCreateRequest, caller: Caller) -> pb.ImageGetOrCreateResponse:
        """The same definition gets the same id, as from the real service's cache of layers."""
        wanted = request.image
        image = next((i for i in self._state.images.values() if i.definition == wanted), None)
        if image is None:
            image = ImageRecord(
                image_id=self._state.new_id("im"),
                base_image_ids=tuple(base.image_id for base in wanted.base_images),
                dockerfile_commands=tuple(wanted.dockerfile_commands),
                context_files={file.filename: file.data for file in wanted.context_files},
                context_mount_id=wanted.context_mount_id,
                gpus=image_gpus(wanted.gpu_config),
                definition=wanted,
            )
            self._state.images[image.image_id] = image
        metadata = pb.ImageMetadata(image_builder_version=request.builder_version)
        result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
        return pb.ImageGetOrCreateResponse(image_id=image.image_id, result=result, metadata=metadata)

    @rpc("ImageFromId")
    async def get_image_by_id(self, request: pb.ImageFromIdRequest, caller: Caller) -> pb.ImageFromIdResponse:
        if request.image_id not in self._state.images:
            raise GRPCError(Status.NOT_FOUND, f"Image {request.image_id} not found")
        metadata = pb.ImageMetadata(image_builder_version=IMAGE_BUILDER_VERSION)
        return pb.ImageFromIdResponse(image_id=request.image_id, metadata=metadata)

    @rpc("MountGetOrCreate")
    async def get_mount(self, request: pb.MountGetOrCreateRequest, caller: Caller) -> pb.MountGetOrCreateResponse:
        published = request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED
        mount = MountRecord(
            mount_id=f"mo-{request.deployment_name}" if published else self._state.new_id("mo"),
            deployment_name=request.deployment_name,
            files={file.filename: file for file in request.files},
        )
        self._state.mounts[mount.mount_id] = mount
        return pb.MountGetOrCreateResponse(mount_id=mount.mount_id, handle_metadata=pb.MountHandleMetadata())

    @rpc("MountBatchedCheckExistence")
    async def check_files(
        self, request: pb.MountBatchedCheckExistenceRequest, caller: Caller
    ) -> pb.MountBatchedCheckExistenceResponse:
        missing = [sha for sha in request.sha256_hex_hashes if sha not in self._state.contents]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    @rpc("MountPutFile")
    async def put_file(self, request: pb.MountPutFileRequest, caller: Caller) -> pb.MountPutFileResponse:
        """With data it stores a file, without it asks whether the file is there."""
        kind = request.WhichOneof("data_oneof")
        if kind == "data":
            self._state.contents[request.sha256_hex] = request.data
        elif kind == "data_blob_id":
            self._state.contents[request.sha256_hex] = self._state.blobs[request.data_blob_id]
        return pb.MountPutFileResponse(exists=request.sha256_hex in self._state.contents)

    def create_secret(self, name: str, variables: dict[str, str]) -> SecretRecord:
        secret = SecretRecord(secret_id=self._state.new_id("st"), name=name, environment=variables)
        self._state.secrets[secret.secret_id] = secret
        return secret

    @rpc("SecretGetOrCreate")
    async def get_secret(self, request: pb.SecretGetOrCreateRequest, caller: Caller) -> pb.SecretGetOrCreateResponse:
        name, kind = request.deployment_name, request.object_creation_type
        secret = next((s for s in self._state.secrets.values() if name and s.name == name), None)
        if secret is None:
            if kind == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
            secret = self.create_secret(name, dict(request.env_dict))
        elif kind == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Secret '{name}' already exists")
        elif kind == pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            secret.environment = dict(request.env_dict)
        missing = sorted(set(request.required_keys) - secret.environment.keys())
        if missing:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' is missing key(s): {', '.join(missing)}")
        metadata = pb.SecretMetadata(name=secret.name, keys=secret.environment)
        return pb.SecretGetOrCreateResponse(secret_id=secret.secret_id, metadata=metadata)

    @rpc("SecretList")
    async def list_secrets(self, request: pb.SecretListRequest, caller: Caller) -> pb.SecretListResponse:
        """In pages before a time, like volumes."""
        page = request.pagination
        named = [secret for secret in self._state.secrets.values() if secret.name]
        named.sort(key=lambda secret: secret.created_at, reverse=True)
        wanted = [s for s in named if not page.created_before or s.created_at < page.created_before]
        return pb.SecretListResponse(
            items=[
                pb.SecretListItem(
                    label=secret.name,
                    secret_id=secret.secret_id,
                    created_at=secret.created_at,
                    environment_name=ENVIRONMENT,
                    metadata=pb.SecretMetadata(name=secret.name, keys=secret.environment),
                )
                for secret in wanted[: page.max_objects or None]
            ],
            environment_name=ENVIRONMENT,
        )

    @rpc("BlobCreate")
    async def create_blob(self, request: pb.BlobCreateRequest, caller: Caller) -> pb.BlobCreateResponse:
        blob_id = self._state.new_id("bl")
        urls = pb.UploadUrlList(items=[f"{self._state.http_url}/blobs/{blob_id}"])
        return pb.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id], upload_urls=urls)

    @rpc("BlobGet")
    async def get_blob(self, request: pb.BlobGetRequest, caller: Caller) -> pb.BlobGetResponse:
        if request.blob_id not in self._state.blobs:
            raise GRPCError(Status.NOT_FOUND, f"Blob {request.blob_id} not found")
        return pb.BlobGetResponse(download_url=f"{self._state.http_url}/blobs/{request.blob_id}")
