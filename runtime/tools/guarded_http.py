"""An HTTP client for a tool, held to the network scopes of its call.

Each request passes `ScopedTransport`, those of a redirect and of an authentication flow included. Names are
compared as names and never resolved: whoever allows a name trusts its DNS.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Final

import httpx

from runtime.core.model import NetworkScope, Scope
from runtime.core.scopes import allows_address
from runtime.errors import ErrorCode, ToolError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class ScopedTransport(httpx.BaseTransport):
    """Refuses requests to addresses that no network scope names, and sends the others.

    Args:
        scopes: What the call was granted.
    """

    def __init__(self, scopes: Sequence[Scope]) -> None:
        self._scopes = tuple(scopes)
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            ToolError: ``SCOPE_DENIED``, if no network scope names its address; nothing was sent.
        """
        _require(self._scopes, request.url)
        return self._inner.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def scoped_client(scopes: Sequence[Scope]) -> httpx.Client:
    """A client whose every request is checked against network scopes.

    It takes no proxy from the environment, since what a proxy reaches cannot be checked, and follows
    redirects where ``follow_redirects=True`` asks for it, as long as they stay within the scopes. Its
    connections end when nobody holds it any more.
    """
    transport = ScopedTransport(scopes)
    client = httpx.Client(transport=transport, trust_env=False)
    weakref.finalize(client, transport.close)
    return client


def _require(scopes: Sequence[Scope], url: httpx.URL) -> None:
    host, port = url.raw_host.decode("ascii"), url.port or _DEFAULT_PORTS.get(url.scheme)
    if port is not None and url.scheme in _DEFAULT_PORTS and allows_address([scopes], host, port):
        return
    given = [
        entry
        for scope in scopes
        if isinstance(scope, NetworkScope)
        for entry in scope.allowlist_entries or (scope.posture,)
    ]
    raise ToolError(
        f"the call may not reach {url.scheme}://{host}:{port or '?'}: no network scope of it names that; "
        f"they name {', '.join(given) or 'nothing'} — add {host}:{port or 443} to the tool's scopes, and to "
        "all that narrows them",
        code=ErrorCode.SCOPE_DENIED,
        details={"host": host, "port": port, "scope_allowed": given},
    )
