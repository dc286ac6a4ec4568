"""Making seals: with a private key that only the sealing process holds, over what grew since the last seal.

A database that somebody else can write still cannot make them a seal that an earlier copy, or the public key,
agrees with. So the key belongs in a process of its own, such as a scheduled command, and in no worker.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from runtime.core.merkle import Tree
from runtime.core.seals import Seal, SignedSeal, fits, key_id, public_key, sign
from runtime.errors import ConfigurationError, InvalidInput, MissingEnvironment
from runtime.settings import PREFIX, Settings
from runtime.store.engine import Database
from runtime.store.seals import Grown, add_seal, read_grown

RECEIPTS_PER_SEAL = 10_000
"""How many receipts one seal takes in at most, so that adding it stays a short transaction."""

_OTHERS = 0o077


def load_key(settings: Settings, environ: Mapping[str, str]) -> Ed25519PrivateKey:
    """The private key that the settings name: a file, or a variable that holds the same text.

    Raises:
        ConfigurationError: If none is named, or it is no Ed25519 key, or others may read its file.
    """
    if settings.seal_key_file is not None:
        return read_key(settings.seal_key_file)
    name = settings.seal_key_env
    if name is None:
        raise MissingEnvironment(
            f"no key to seal with is named; set {PREFIX}SEAL_KEY_FILE to a file that 'agent-runtime evidence "
            f"generate-key FILE' wrote, or {PREFIX}SEAL_KEY_ENV to the name of a variable that holds its text"
        )
    if not environ.get(name, "").strip():
        raise MissingEnvironment(
            f"the variable {name}, which {PREFIX}SEAL_KEY_ENV names, is not set; put the key's PEM text there"
        )
    return _parse(environ[name].encode(), f"the variable {name}")


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key (PKCS #8, PEM) from a file that nobody else may read.

    Raises:
        ConfigurationError: If it cannot be read, is no Ed25519 key, or others may read it.
    """
    try:
        with path.open("rb") as file:
            others = os.fstat(file.fileno()).st_mode & _OTHERS
            content = file.read(65_536)
    except OSError as error:
        raise ConfigurationError(
            f"the key file {path} cannot be read ({error.strerror}); name one that this user can read"
        ) from error
    if others:
        raise ConfigurationError(f"the key file {path} is open to other users; run: chmod 600 {path}")
    return _parse(content, f"the key file {path}")


def _parse(content: bytes, what: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{what} holds no Ed25519 private key without password (PKCS #8, PEM); "
            "write one with 'agent-runtime evidence generate-key FILE'"
        )
    return key


def write_key(path: Path) -> Ed25519PrivateKey:
    """Make a new private key and write it to a new file that only its owner can read.

    Raises:
        ConfigurationError: If the file exists or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the key file {path} cannot be written ({error.strerror}); name a new file"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    return key


# --- sealing --------------------------------------------------------------------------------------


def seal_evidence(
    database: Database, key: Ed25519PrivateKey, limit: int = RECEIPTS_PER_SEAL
) -> list[SignedSeal]:
    """Seal all that is committed and not sealed yet; the first seal ever introduces the key.

    Several processes may do so at once: who comes second goes on behind the other's seal.

    Args:
        database: The database.
        key: The key that counts.
        limit: How many receipts one seal takes in at most.

    Returns:
        The new seals, in order; none if nothing has come since the last one.

    Raises:
        ConfigurationError: If another key counts.
        InvalidInput: If the last seal in the database is damaged, or was not signed with this key.
    """
    made: list[SignedSeal] = []
    while True:
        grown = read_grown(database, limit)
        first = grown.last is None
        if not first and not grown.heads:
            return made
        signed = _next_seal(grown, key, key if first else None)
        heads, until = ((), grown.since) if first else (grown.heads, grown.until)
        if add_seal(database, signed, heads, until):
            made.append(signed)


def rotate_key(database: Database, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> SignedSeal:
    """Let another key count from now on: the old one signs a seal that introduces it.

    Raises:
        ConfigurationError: If ``old`` is not the key that counts, or ``new`` is the same.
        InvalidInput: If the last seal in the database is damaged.
    """
    if public_key(old) == public_key(new):
        raise ConfigurationError(f"key {key_id(public_key(new))} counts already; give a new one")
    while True:
        grown = read_grown(database, 0)
        introduced = old if grown.last is None else new
        signed = _next_seal(grown, old, introduced)
        if add_seal(database, signed, (), grown.since) and introduced is new:
            return signed


def _next_seal(grown: Grown, key: Ed25519PrivateKey, introduced: Ed25519PrivateKey | None) -> SignedSeal:
    """Sign the next seal: one that introduces a key, or else one that covers what grew."""
    last, heads = grown.last, () if introduced else grown.heads
    seal = Seal(
        number=0 if last is None else last.seal.number + 1,
        at=grown.at,
        previous=None if last is None else last.hash,
        key_id=key_id(public_key(key)),
        public_key=None if introduced is None else public_key(introduced),
        leaves=len(heads),
        root=Tree([head.leaf for head in heads]).root.hex(),
        sessions=len({head.session_id for head in heads}),
        receipts=0 if introduced else grown.receipts,
        workspaces=grown.workspaces,
    )
    if last is not None and seal.key_id != last.seal.key_after:
        raise ConfigurationError(
            f"the key to seal with is {seal.key_id}, and {last.seal.key_after} is the one that counts; seal "
            "with that one, or let it introduce yours with 'agent-runtime evidence rotate-key'"
        )
    if last is not None and last.seal.key_id == seal.key_id and not fits(last, public_key(key)):
        raise InvalidInput(
            f"seal {last.seal.number} in the database does not carry the signature of its key, so somebody "
            "changed it; run 'agent-runtime evidence verify --seals' with a copy before sealing again"
        )
    return sign(seal, key)
