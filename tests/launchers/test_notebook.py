"""``nsm-modal notebook``: JupyterLab in a container, over the stand-in's tunnel, with its token alone."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra_plugins.nsm_modal.cli import main

from tests.fake_modal import FakeModal

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def client(server: FakeModal) -> "Iterator[subprocess.Popen[str]]":
    """The command, running in the checkout as a user would run it."""
    pytest.importorskip("jupyterlab", reason="the extra notebook is not installed")
    command = [sys.executable, "-m", "hydra_plugins.nsm_modal.cli", "notebook"]
    environment = {**os.environ, **server.client_environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'launchers'}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


def ask(address: str, method: str = "GET", content: object = None, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def test_notebook_opens_with_its_token_alone(server: FakeModal, client: "subprocess.Popen[str]") -> None:
    assert client.stdout is not None
    printed = []
    for line in client.stdout:
        printed.append(line)
        if line.startswith("open "):
            break
    found = re.fullmatch(r"open ((http://[\d.:]+)/lab/tree/dashboard.ipynb\?token=(\S+))", printed[-1].strip())
    assert found is not None, "".join(printed)
    address, base, token = found.groups()
    with urllib.request.urlopen(address, timeout=30) as answer:  # as it was printed
        assert answer.url == address, "no login page"
        assert b"jupyter-config-data" in answer.read()
    assert len(token) >= 32
    assert "A100-40GB for 4 hours at most: about $" in printed[0]

    for path in ("/api/contents", "/api/kernels", "/api/sessions"):
        assert ask(base + path)[0] == 403, path
        assert ask(base + path, Authorization="token guessed")[0] == 403, path
        assert ask(f"{base}{path}?token=guessed")[0] == 403, path
    for path in ("/lab", f"/proxy/{base.rpartition(':')[2]}/api"):
        assert 'name="password"' in ask(base + path)[2], "whoever has no token is led to the login page"
    owner = {"Authorization": f"token {token}"}
    status, _, listed = ask(f"{base}/api/contents", **owner)
    assert status == 200
    assert "dashboard.ipynb" in {entry["name"] for entry in json.loads(listed)["content"]}
    notebook = json.loads(ask(f"{base}/api/contents/dashboard.ipynb", **owner)[2])
    assert notebook["type"] == "notebook"
    assert ask(f"{base}/lab/tree/dashboard.ipynb", **owner)[0] == 200

    elsewhere = {"Origin": "https://elsewhere.example"}
    assert "Access-Control-Allow-Origin" not in ask(f"{base}/api/contents", **elsewhere)[1]
    cookies = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    cookies.open(f"{base}/lab?token={token}", timeout=30).close()  # as a browser that is logged in
    cookies.open(f"{base}/api/contents", timeout=30).close()
    with pytest.raises(urllib.error.HTTPError, match="404"):  # Jupyter's answer to another origin
        cookies.open(urllib.request.Request(f"{base}/api/contents", headers=elsewhere), timeout=30)

    edited = {"type": "file", "format": "text", "content": "kept"}
    assert ask(f"{base}/api/contents/note.txt", "PUT", edited, **owner)[0] == 201
    (function,) = server.functions.values()
    assert (function.gpus, function.timeout_seconds, function.max_containers) == (("A100-40GB",), 4 * 3600, 1)
    assert [tunnel.unencrypted for tunnel in server.tunnels] == [False]
    client.send_signal(signal.SIGINT)
    told = client.stdout.read()
    assert client.wait(timeout=60) == 130, told
    assert not server.busy_containers()
    volume = server.volume("nsm-checkpoints").directory / "notebooks"
    assert (volume / "note.txt").read_text() == "kept", "what was written is committed on exit"
    assert (volume / "dashboard.ipynb").exists()
    assert token not in server.log_text()
    assert all(token not in path.read_text(errors="replace") for path in volume.rglob("*") if path.is_file())


def test_it_ends_with_the_stand_in(isolation: None) -> None:
    """Which the README starts so, and which ``timeout`` or a service manager ends by SIGTERM."""
    pytest.importorskip("jupyterlab", reason="the extra notebook is not installed")
    python = [sys.executable, "-m"]
    command = [*python, "tests.fake_modal", *python, "hydra_plugins.nsm_modal.cli", "notebook"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'launchers'}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("open ")).split()[1]
        urllib.request.urlopen(address, timeout=30).close()
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(address, timeout=30)


@pytest.mark.parametrize("hours", ["0", "5"])
def test_a_time_that_is_not_allowed_is_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["notebook", "--hours", hours])
    assert f"{hours} is not above 0 and at most 4" in capsys.readouterr().err
