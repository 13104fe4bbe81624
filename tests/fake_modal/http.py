"""Uploads and downloads, which Modal does by HTTP from object stores."""

import hashlib
from pathlib import Path

from aiohttp import web
from grpclib import GRPCError, Status

from tests.fake_modal.state import State

MAX_UPLOAD = 1 << 30
"""Bytes; beyond that the client expects multipart uploads, which the stand-in does not do."""


def inside(directory: Path, path: str) -> Path:
    """The file of that path inside a directory; a path that leads out of it is refused."""
    joined = directory.joinpath(path.strip("/"))
    if ".." in joined.relative_to(directory).parts:
        raise GRPCError(Status.INVALID_ARGUMENT, f"{path!r} leads out of the volume")
    return joined


class Transfers:
    """An HTTP server on loopback for blobs and for the blocks of files in volumes."""

    def __init__(self, state: State) -> None:
        self._state = state
        app = web.Application(client_max_size=MAX_UPLOAD)
        app.add_routes(
            [
                web.put("/blobs/{blob_id}", self._put_blob),
                web.get("/blobs/{blob_id}", self._get_blob),
                web.put("/blocks/{sha256}", self._put_block),
                web.get("/volumes/{volume_id}/{path:.+}", self._get_block),
            ]
        )
        self._runner = web.AppRunner(app)

    async def start(self) -> str:
        """Start to serve; returns the URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _put_blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        self._state.blobs[request.match_info["blob_id"]] = data
        return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    async def _get_blob(self, request: web.Request) -> web.Response:
        return web.Response(body=self._state.blobs[request.match_info["blob_id"]])

    async def _put_block(self, request: web.Request) -> web.Response:
        data = await request.read()
        self._state.contents[request.match_info["sha256"]] = data
        return web.Response(text="stored")

    async def _get_block(self, request: web.Request) -> web.Response:
        volume = self._state.volumes[request.match_info["volume_id"]]
        with inside(volume.directory, request.match_info["path"]).open("rb") as file:
            file.seek(int(request.query["start"]))
            return web.Response(body=file.read(int(request.query["length"])))
