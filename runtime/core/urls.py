"""Addresses by the WHATWG URL rules: normalise, compare, name the host and port, join an endpoint.

Parsing is that of the ada library (https://url.spec.whatwg.org/); httpx and `urllib` follow RFC 3986, whose
normal forms differ. Every model call asks the same of the same few addresses, so answers are kept.
"""

from __future__ import annotations

from functools import lru_cache

from ada_url import URL

from runtime.errors import ConfigurationError

_DEFAULT_PORTS = {"http:": "80", "https:": "443"}


@lru_cache(maxsize=256)
def normalise_url(text: str, *, source: str) -> str:
    """Return the WHATWG serialisation of an absolute URL.

    Args:
        text: The URL as somebody wrote it.
        source: Where it stands, for the error message.

    Raises:
        ConfigurationError: If it is not an absolute URL. The message does not repeat the text, which may
            hold a password.
    """
    try:
        # A lone surrogate has no UTF-8 form; U+FFFD is what a URL parser would see in its place.
        return URL(text.encode("utf-8", "replace").decode("utf-8")).href
    except ValueError:
        raise ConfigurationError(
            f"{source} is not a URL; write it in full, as in https://host:443/v1"
        ) from None


@lru_cache(maxsize=256)
def require_callable(url: str, *, source: str) -> None:
    """Refuse a URL that cannot be called over HTTP, or that carries credentials.

    Raises:
        ConfigurationError: If the scheme is neither http nor https, or a user or password is in it.
    """
    parsed = URL(url)
    if parsed.protocol not in _DEFAULT_PORTS:
        raise ConfigurationError(f"{source} has the scheme {parsed.protocol!r}; use http or https")
    if parsed.username or parsed.password:
        raise ConfigurationError(f"{source} carries credentials; name a variable in api_key_env instead")


@lru_cache(maxsize=256)
def host_and_port(url: str) -> str:
    """``host:port`` of a URL, with the scheme's default port when it names none, as scopes list it."""
    parsed = URL(url)
    return f"{parsed.hostname}:{parsed.port or _DEFAULT_PORTS.get(parsed.protocol, '')}"


@lru_cache(maxsize=256)
def join_endpoint(base: str, path: str) -> str:
    """Append an endpoint's path to a base URL; a trailing slash or a part already there does no harm.

    Example:
        >>> join_endpoint("https://host/v1/", "/v1/messages")
        'https://host/v1/messages'
    """
    url = URL(base)
    have = [part for part in url.pathname.split("/") if part]
    want = [part for part in path.split("/") if part]
    overlap = next(n for n in range(len(want), -1, -1) if have[len(have) - n :] == want[:n])
    url.pathname = "/" + "/".join(have + want[overlap:])
    url.hash = ""
    return url.href
