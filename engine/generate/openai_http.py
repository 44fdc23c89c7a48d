"""HTTP for the openai backend: a pool of kept connections, addresses, what must not be shown.

aiohttp is imported here alone. Of the three clients measured (docs/servers.md) it costs the least CPU a request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from obverse.engine.errors import BackendError, MissingPackageError

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Address", "Connections", "NoAnswer", "Reply", "Secrets", "client_version", "require_client"]

MOST_BYTES = 32 << 20  # of one answer; a server that sends more is broken or hostile
CONNECT_SECONDS = 30.0
# Below the 5 s after which uvicorn (vLLM's server) closes an idle connection: a request never meets one half closed.
IDLE_SECONDS = 4.0
LONGEST_WAIT = 3600.0  # seconds that a Retry-After may ask for
SHORTEST_SECRET = 8  # characters; below it are the "EMPTY" and "none" of local servers, which texts may well contain


class Reply(NamedTuple):
    """An answer of any status, read to its end."""

    status: int
    body: bytes
    retry_after: float
    """Seconds that the server asks us to wait; 0 where it doesn't."""


class NoAnswer(NamedTuple):
    """Why a request got no whole answer."""

    message: str
    sent: bool = True
    """Whether the server may have seen the request."""
    timed_out: bool = False
    final: bool = False
    """Whether waiting can't help."""


class Secrets:
    """Strings that go out in a header or an address and must come back in nothing that is kept or shown."""

    def __init__(self, values: Iterable[str]) -> None:
        found: set[str] = set()
        for value in values:
            if len(value) >= SHORTEST_SECRET:
                found |= {value, quote(value, safe=""), json.dumps(value)[1:-1]}
        self._values = sorted(found, key=lambda value: (-len(value), value))

    def strike(self, text: str) -> str:
        """The text with every secret in it replaced by ``[key]``."""
        for value in self._values:
            text = text.replace(value, "[key]")
        return text


class Address:
    """A server's base URL taken apart; user and password become a header, and neither they nor the query are shown."""

    def __init__(self, base_url: str, key: str) -> None:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        place = f"{host}:{parts.port}" if parts.port else host
        self.shown = f"{parts.scheme}://{place}{parts.path}"
        self._parts = parts._replace(netloc=place, path=parts.path.rstrip("/"), fragment="")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        basic = base64.b64encode(f"{user}:{password}".encode()).decode() if user or password else ""
        self.authorization = f"Bearer {key}" if key else (f"Basic {basic}" if basic else "")
        if not all(" " <= c <= "~" for c in self.authorization):
            raise BackendError("OPENAI_API_KEY holds characters that no HTTP header may; set it anew")
        self.secrets = [key, password, basic, *(value for _, value in parse_qsl(parts.query))]

    def url(self, path: str) -> str:
        """Where requests of one kind go, such as ``/chat/completions``."""
        return urlunsplit(self._parts._replace(path=self._parts.path + path))

    def proxy(self) -> str | None:
        """The proxy that the environment names for this address; asked once, not at each request."""
        if proxy_bypass(self._parts.hostname or ""):
            return None
        proxies = getproxies()
        return proxies.get(self._parts.scheme) or proxies.get("all")


def require_client() -> None:
    """Raise `MissingPackageError` where aiohttp is not installed."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("aiohttp", needed_for="generate.backend = 'openai'", extra="openai") from error


def client_version() -> str:
    """aiohttp's version."""
    import aiohttp

    return str(aiohttp.__version__)


class Connections:
    """Kept connections to one server. Make and use inside one event loop; `close` when done."""

    def __init__(self, address: Address, *, most: int, timeout: float) -> None:
        """At most ``most`` connections; a request's whole answer within ``timeout`` seconds."""
        import aiohttp
        import yarl

        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # answers are short: packing costs both sides more than it saves
            "User-Agent": "obverse",
        }
        if address.authorization:
            headers["Authorization"] = address.authorization
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=most, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=60),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_SECONDS)),
        )
        self._timeout = timeout
        self._proxy = address.proxy()
        self._urls = {path: yarl.URL(address.url(path), encoded=True) for path in ("/chat/completions", "/completions")}

    async def post(self, path: str, body: bytes, timeout: float | None = None) -> Reply | NoAnswer:
        """Send one request and read its answer; never raises for what a server or network may do."""
        import aiohttp

        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        more: dict[str, Any] = {} if timeout is None else {"timeout": aiohttp.ClientTimeout(total=limit)}
        try:
            # No redirects: they would carry the key to another server, or turn POST into GET.
            async with self._session.post(
                self._urls[path], data=body, allow_redirects=False, proxy=self._proxy, **more
            ) as response:
                return await _read(response)
        except aiohttp.ClientConnectorCertificateError as error:
            return NoAnswer(f"its certificate is not trusted: {_reason(error.certificate_error)}", False, final=True)
        except aiohttp.ConnectionTimeoutError:
            return NoAnswer("no connection within its time", sent=False, timed_out=True)
        except aiohttp.ClientConnectorError as error:
            return NoAnswer(f"no connection: {_reason(error.os_error)}", sent=False)
        except asyncio.TimeoutError:  # noqa: UP041 - before Python 3.11.? aiohttp's own are not the built-in one
            return NoAnswer(f"no answer within {limit:g} s (timeout)", timed_out=True)
        except (aiohttp.ServerDisconnectedError, ConnectionError):
            return NoAnswer("the server closed the connection")
        except aiohttp.ClientPayloadError:
            return NoAnswer("the answer was cut short")
        except aiohttp.ClientResponseError:
            return NoAnswer("the answer is not HTTP")
        except (aiohttp.ClientError, OSError) as error:
            return NoAnswer(f"the connection failed: {_reason(error)}")

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


async def _read(response: aiohttp.ClientResponse) -> Reply | NoAnswer:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MOST_BYTES:
            response.close()
            return NoAnswer(f"the answer has more than {MOST_BYTES >> 20} MiB")
        parts.append(part)
    return Reply(response.status, b"".join(parts), _retry_after(response.headers.get("Retry-After", "")))


def _reason(error: BaseException) -> str:
    """In words of the system, never of the HTTP client, whose messages carry addresses."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS"
    if isinstance(error, OSError) and error.strerror:
        # asyncio puts words of its own, and the address, into some; a name that was not found has no system error.
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return type(error).__name__


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for (a number or an HTTP date); 0 without one."""
    value = value.strip()
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(seconds, LONGEST_WAIT) if seconds > 0 else 0.0  # and 0 for what is not a number
