"""Real servers and real processes, as a deployment has them."""

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
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


@pytest.fixture(scope="session")
def free_port():
    """Finds a TCP port on loopback that nobody listens on."""

    def find():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


class Poll:
    """Asks an HTTP server until the answer fits."""

    def __init__(self, base_url, credentials=None):
        self.base_url = base_url
        self.headers = {}
        if credentials:
            self.headers["Authorization"] = "Basic " + b64encode(credentials.encode()).decode()

    def get(self, path):
        request = urllib.request.Request(self.base_url + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.read().decode()

    def until(self, path, fits, seconds=120.0):
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
