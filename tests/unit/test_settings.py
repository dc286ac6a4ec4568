"""Settings: arguments over environment over defaults, errors with their fix, no secrets shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import ConfigurationError
from runtime.settings import Settings, redact_url


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AGENT_RUNTIME_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_with_nothing_set_the_database_is_sqlite_under_the_state_directory(tmp_path):
    settings = Settings.load()
    assert settings.database_url == f"sqlite:///{tmp_path}/.agent-runtime/runtime.db"
    assert settings.redis_url is None
    assert settings.state_dir == tmp_path / ".agent-runtime"
    assert (settings.lease_seconds, settings.heartbeat_seconds, settings.republish_seconds) == (30, 10, 5)


def test_an_argument_beats_the_environment_which_beats_the_default(monkeypatch):
    monkeypatch.setenv("AGENT_RUNTIME_LEASE_SECONDS", "60")
    assert Settings.load().lease_seconds == 60
    assert Settings.load(lease_seconds=90).lease_seconds == 90
    assert Settings.load(lease_seconds=None).lease_seconds == 60


def test_a_blank_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("AGENT_RUNTIME_REDIS_URL", "")
    assert Settings.load().redis_url is None


def test_a_state_directory_moves_the_default_database(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENT_RUNTIME_STATE_DIR", "elsewhere")
    assert Settings.load().database_url == f"sqlite:///{tmp_path}/elsewhere/runtime.db"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("postgres://u:p@db/app", "postgresql+psycopg://u:p@db/app"),
        ("postgresql://u:p@db/app?sslmode=require", "postgresql+psycopg://u:p@db/app?sslmode=require"),
        ("postgresql+psycopg://db/app", "postgresql+psycopg://db/app"),
        ("sqlite:////var/lib/app.db", "sqlite:////var/lib/app.db"),
    ],
)
def test_database_urls_are_normalised_to_the_driver_we_depend_on(given, meant):
    assert Settings.load(database_url=given).database_url == meant


def test_a_relative_sqlite_path_becomes_absolute(tmp_path):
    assert Settings.load(database_url="sqlite:///app.db").database_url == f"sqlite:///{tmp_path}/app.db"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"database_url": "mysql://u:hush@db/app"},
            ["argument database_url", "mysql://u:***@db", "postgresql://"],
        ),
        ({"database_url": "sqlite://"}, ["memory", "sqlite:///path"]),
        ({"database_url": "sqlite:///:memory:"}, ["memory"]),
        ({"redis_url": "http://:hush@cache"}, ["argument redis_url", "http://:***@cache", "redis://"]),
        ({"redis_url": "unix://"}, ["socket", "unix:///path"]),
        ({"lease_seconds": 0}, ["lease_seconds", "'0'", "greater than 0", "default is 30"]),
        ({"heartbeat_seconds": 20}, ["HEARTBEAT_SECONDS: 20", "LEASE_SECONDS (30)", "lower"]),
        ({"republish_seconds": 90}, ["REPUBLISH_MAX_SECONDS: 60", "REPUBLISH_SECONDS (90)"]),
        ({"databse_url": "x"}, ["databse_url", "no such setting", "'database_url'"]),
    ],
)
def test_a_wrong_value_is_named_with_its_fix_and_without_secrets(arguments, words):
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(**arguments)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "hush" not in message


def test_a_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("AGENT_RUNTIME_LEASE_SECONDS", "soon")
    with pytest.raises(ConfigurationError, match=r"AGENT_RUNTIME_LEASE_SECONDS: 'soon'.*number"):
        Settings.load()


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigurationError, match=r"(?s)lease_seconds.*max_crashes"):
        Settings.load(lease_seconds=-1, max_crashes=0)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hush@cache:6379/0", "redis://:***@cache:6379/0"),
        ("redis://hush@cache", "redis://***@cache"),
        ("postgresql://u:hu/sh@db/app", "postgresql://u:***@db/app"),
        ("postgresql://u:hu?sh@x@db/app", "postgresql://u:***@db/app"),
        ("postgresql://db/app?user=u&password=hush", "postgresql://db/app?user=***&password=***"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("hush", "***"),
    ],
)
def test_a_redacted_url_keeps_the_place_and_loses_the_secret(url, shown):
    assert redact_url(url) == shown


def test_neither_repr_nor_description_shows_a_password():
    settings = Settings.load(database_url="postgresql://u:hush@db/app", redis_url="redis://:hush@cache/0")
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.describe())
    assert settings.describe()["redis_url"] == "redis://:***@cache/0"


def test_settings_cannot_be_changed_after_loading():
    with pytest.raises(Exception, match="frozen"):
        Settings.load().workspace = Path("other.yaml")


def test_a_misspelt_variable_is_warned_about(monkeypatch, caplog):
    monkeypatch.setenv("AGENT_RUNTIME_DATABSE_URL", "postgresql://db/app")
    monkeypatch.setenv("AGENT_RUNTIME_API_KEY", "k")
    Settings.load()
    assert [record.getMessage() for record in caplog.records] == [
        "AGENT_RUNTIME_DATABSE_URL is not a setting and is ignored; did you mean AGENT_RUNTIME_DATABASE_URL?"
    ]
