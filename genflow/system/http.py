"""One HTTP request through the standard library, for every part of genflow that asks a server something.

- A request to this machine never goes through a proxy, whatever HTTP_PROXY and NO_PROXY say: a token for a local
  server would be sent to the proxy in clear text. Other requests use the proxy that the environment names.
- A redirect is not followed: a token or a key reaches the server that was named, and no other.
- Every status is an answer. Only a request without an answer raises.
"""

import functools
import http.client
import ipaddress
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class RequestFailed(OSError):  # noqa: N818  the end of a request, not a fault of this program
    """There is no answer: no connection, no answer in time, or one that is not HTTP. Its text is the reason."""


@dataclass(frozen=True)
class Response:
    """An answer.

    Args:
        url: that was asked.
        status: of any kind, such as 200, 302, 404 or 503.
        body: all of it.
        headers: by their names in lower case.
    """

    url: str
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is not JSON.
        """
        return json.loads(self.body)


def request(
    url: str,
    *,
    method: str | None = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Response:
    """Send one request and read the whole answer.

    Args:
        url: `http://` or `https://`.
        method: by default GET, or POST where there is `data`.
        data: the body.
        headers: of the request.
        timeout: seconds for each step that waits for the server: the connection, the answer's head, each read.

    Raises:
        RequestFailed: there is no answer.
    """
    try:
        asked = urllib.request.Request(url, data, dict(headers or {}), method=method)
        proxies = {} if is_loopback(asked.host) else urllib.request.getproxies()
        with _opener(tuple(sorted(proxies.items()))).open(asked, timeout=timeout) as answer:
            return Response(
                url, answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
            )
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RequestFailed(_reason(error)) from error


def is_loopback(host: str | None) -> bool:
    """Whether the host of a URL, with or without its port, is this machine by its own name or number.

    No name is looked up. The unspecified address counts: connecting to 0.0.0.0 reaches this machine.
    """
    name = (host or "").rpartition("@")[2]
    if name.startswith("["):
        return _is_this_machine(name[1:].partition("]")[0])
    before, _, port = name.rpartition(":")  # http.client, too, takes what follows the last colon for the port
    return _is_this_machine(name) or (port.isdigit() and _is_this_machine(before))


def _is_this_machine(name: str) -> bool:
    address = _address(name)
    if address is None:
        return name.lower().removesuffix(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A number as a connection reads it, so that 127.1 is 127.0.0.1; None for a name."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError):
            return None


@functools.cache
def _opener(proxies: tuple[tuple[str, str], ...]) -> urllib.request.OpenerDirector:
    """An opener without urllib's handlers for redirects, errors, files and FTP; making one reads the certificates."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(dict(proxies)),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(error: Exception) -> str:
    """Why there is no answer, in a few words."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
