"""What the stand-in was asked for and what it did, as plain data that tests read."""

import enum
import time
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2 as pb


@dataclass(kw_only=True)
class AppRecord:
    """An app; ``state`` is a name of Modal's ``AppState`` without its prefix, such as ``"EPHEMERAL"``."""

    app_id: str
    description: str
    state: str
    tags: dict[str, str]
    deployment_name: str = ""
    version: int = 0
    created_at: float = field(default_factory=time.time)
    deployed_at: float = 0.0
    stopped_at: float = 0.0
    last_heartbeat: float = field(default_factory=time.time)
    disconnect_reason: str = ""
    function_ids: dict[str, str] = field(default_factory=dict)
    """By name, as of the last publication."""

    @property
    def stopped(self) -> bool:
        return self.state == "STOPPED"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    max_retries: int
    backoff_coefficient: float
    initial_delay_seconds: float
    max_delay_seconds: float

    def delay(self, retry: int) -> float:
        """Seconds before the given retry (1 is the first)."""
        return min(self.initial_delay_seconds * self.backoff_coefficient ** (retry - 1), self.max_delay_seconds)


@dataclass(kw_only=True)
class FunctionRecord:
    """A FunctionCreate request; units are Modal's (CPU cores, MiB, seconds)."""

    function_id: str
    app_id: str
    name: str
    module: str
    gpus: tuple[str, ...]
    """In order of preference; ``"A100-40GB"``, or ``"A100-40GB:2"`` for two."""
    cpu: float
    memory_mib: int
    timeout_seconds: int
    startup_timeout_seconds: int
    retry_policy: RetryPolicy | None
    volumes: dict[str, str]
    """Mount path to volume id."""
    secret_ids: tuple[str, ...]
    image_id: str
    mount_ids: tuple[str, ...]
    min_containers: int
    max_containers: int
    """0 stands for no limit."""
    scaledown_window_seconds: int
    single_use_containers: bool
    memory_snapshot: bool
    cloud: str
    regions: tuple[str, ...]
    nonpreemptible: bool
    definition: pb.Function
    data: pb.FunctionData


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One layer of an image, as the client asked for it."""

    image_id: str
    base_image_ids: tuple[str, ...]
    dockerfile_commands: tuple[str, ...]
    context_files: dict[str, bytes]
    context_mount_id: str
    gpus: tuple[str, ...]
    definition: pb.Image


@dataclass(frozen=True, kw_only=True)
class MountRecord:
    """Files that the client sent, by their path in the container; Modal's own packages have none."""

    mount_id: str
    deployment_name: str
    files: dict[str, pb.MountFile]


@dataclass(kw_only=True)
class SecretRecord:
    secret_id: str
    name: str
    environment: dict[str, str]
    created_at: float = field(default_factory=time.time)


@dataclass(kw_only=True)
class VolumeRecord:
    volume_id: str
    name: str
    version: int
    directory: Path
    """The committed content; gone when deleted."""
    deleted: bool = False
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """A commit that changed a volume, or found nothing to change."""

    container_id: str
    volume_id: str
    background: bool
    """True for the stand-in's own commits at an interval, False for a VolumeCommit from the container."""
    changed: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(kw_only=True)
class InputRecord:
    """One set of arguments: a call has one, a map has many."""

    input_id: str
    call_id: str
    function_id: str
    index: int
    payload: pb.FunctionInput
    retry_count: int = 0
    losses: int = 0
    """Containers that died with this attempt; a retry starts again at 0."""
    container_ids: list[str] = field(default_factory=list)
    """Every container this input was delivered to, in order."""
    started_at: float = 0.0
    cancelled: bool = False
    timed_out: bool = False
    output: pb.FunctionGetOutputsItem | None = None
    """The final output, once there is one."""

    @property
    def status(self) -> str:
        """A name of Modal's ``GenericStatus`` without its prefix; ``"UNSPECIFIED"`` while unfinished."""
        status = self.output.result.status if self.output is not None else pb.GenericResult.GENERIC_STATUS_UNSPECIFIED
        return pb.GenericResult.GenericStatus.Name(status).removeprefix("GENERIC_STATUS_")


@dataclass(kw_only=True)
class CallRecord:
    call_id: str
    function_id: str
    app_id: str
    synchronous: bool
    """True for ``remote`` and ``map``, whose retries the client does; False for ``spawn``."""
    parent_input_id: str
    inputs: list[InputRecord] = field(default_factory=list)
    outputs: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    """In order of arrival; for synchronous calls with those of failed attempts."""
    created_at: float = field(default_factory=time.time)

    @property
    def unfinished(self) -> int:
        return sum(record.output is None for record in self.inputs)


class ContainerState(enum.Enum):
    STARTING = "starting"
    """The process runs, but has not asked for input."""
    IDLE = "idle"
    BUSY = "busy"
    EXITING = "exiting"
    """It will get no more input."""
    DEAD = "dead"


@dataclass(kw_only=True)
class ContainerRecord:
    """A container process; ``exit_code`` is negative for a signal, as in `subprocess`."""

    container_id: str
    function_id: str
    app_id: str
    directory: Path
    """Its root file system on this machine; system directories are visible only inside."""
    state: ContainerState = ContainerState.STARTING
    input_ids: list[str] = field(default_factory=list)
    """Every input it was given, in order."""
    preempted: bool = False
    draining: bool = False
    """It will get no input after the one it has."""
    enqueued_at: float = field(default_factory=time.time)
    finished_at: float = 0.0
    pid: int = 0
    exit_code: int | None = None

    @property
    def alive(self) -> bool:
        return self.state is not ContainerState.DEAD


@dataclass(frozen=True, kw_only=True)
class LogRecord:
    """Text as a container wrote it; not necessarily a whole line."""

    app_id: str
    function_id: str
    container_id: str
    call_id: str
    input_id: str
    file_descriptor: int
    time: float
    text: str


@dataclass(frozen=True, kw_only=True)
class TunnelRecord:
    container_id: str
    port: int
    unencrypted: bool
