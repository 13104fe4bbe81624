"""Run a command against a fresh stand-in and print what was asked of it.

python -m tests.fake_modal python -m my_app
"""

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from tests.fake_modal import FakeModal, why_not


def report(server: FakeModal) -> str:
    """What was asked of a server, in lines."""
    lines = ["RPCs: " + ", ".join(f"{name} {count}" for name, count in sorted(server.rpc_counts.items()))]
    for app in server.apps.values():
        lines.append(f"app {app.app_id} {app.description!r}: {app.state}, tags {app.tags}")
    for function in server.functions.values():
        volumes = {path: server.volumes[volume_id].name for path, volume_id in function.volumes.items()}
        lines.append(
            f"function {function.function_id} {function.name!r}: gpus {list(function.gpus)}, cpu {function.cpu}, "
            f"memory {function.memory_mib} MiB, timeout {function.timeout_seconds} s, retries {function.retry_policy}, "
            f"max_containers {function.max_containers}, single use {function.single_use_containers}, volumes {volumes}"
        )
        lines += [f"  {line}" for line in server.image_commands(function.image_id)]
    for call in server.calls.values():
        inputs = ", ".join(f"{i.status} after {len(i.container_ids)} container(s)" for i in call.inputs)
        lines.append(f"call {call.call_id} of {call.function_id}: {inputs}")
    for container in server.containers.values():
        lines.append(f"container {container.container_id} of {container.function_id}: exit code {container.exit_code}")
    for commit in server.commits:
        lines.append(
            f"commit of {server.volumes[commit.volume_id].name or commit.volume_id} by {commit.container_id}: "
            f"{len(commit.changed)} changed, {len(commit.removed)} removed"
        )
    lines += [f"not implemented: {name} {count}" for name, count in server.unimplemented.items()]
    lines += [f"error of the stand-in: {error}" for error in server.errors]
    return "\n".join(lines)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """End as after an error: the command is killed, and the stand-in's containers with all that they started."""
    sys.exit(128 + number)


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: python -m tests.fake_modal COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    if reason := why_not():
        print(f"The stand-in cannot run here: {reason}.", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with (
        FakeModal() as server,
        subprocess.Popen(sys.argv[1:], env={**os.environ, **server.client_environment}) as command,
    ):
        try:
            code = command.wait()
        except KeyboardInterrupt:  # which a terminal sends to the command as well: it ends in its own time
            code = command.wait()
        except SystemExit:
            command.kill()
            raise
    print(report(server), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
