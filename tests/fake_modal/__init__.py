"""A stand-in for Modal: its control plane on loopback, served to the real client and to real containers.

The client is the installed ``modal``; a container is a ``python -m modal._container_entrypoint`` process with its own
root file system. What the stand-in answers was derived from the sources of modal 1.6.4 (named where it is used), since
the service itself is not public.

It does not imitate: building images (they are recorded, and their ENV and WORKDIR lines applied; a container sees this
machine's Python environment), resources (a GPU is recorded, none appears), warm containers (``min_containers``,
``buffer_containers``), memory snapshots, startup timeouts, classes, generators, web endpoints, schedules, sandboxes,
queues, dicts, network isolation, TLS of tunnels (whose addresses begin with http:// here), quotas and rate limits,
uploads over 1 GiB, and environments other than ``main``.
"""

from tests.fake_modal.client import reset_client, wait_for
from tests.fake_modal.isolation import why_not
from tests.fake_modal.records import (
    AppRecord,
    CallRecord,
    CommitRecord,
    ContainerRecord,
    ContainerState,
    FunctionRecord,
    ImageRecord,
    InputRecord,
    LogRecord,
    MountRecord,
    RetryPolicy,
    SecretRecord,
    TunnelRecord,
    VolumeRecord,
)
from tests.fake_modal.server import FakeModal
from tests.fake_modal.settings import Settings

__all__ = [
    "AppRecord",
    "CallRecord",
    "CommitRecord",
    "ContainerRecord",
    "ContainerState",
    "FakeModal",
    "FunctionRecord",
    "ImageRecord",
    "InputRecord",
    "LogRecord",
    "MountRecord",
    "RetryPolicy",
    "SecretRecord",
    "Settings",
    "TunnelRecord",
    "VolumeRecord",
    "reset_client",
    "wait_for",
    "why_not",
]
