"""One HTTP request through the standard library, for every part of genflow that is an HTTP client.

- A request to this machine never uses a proxy, regardless of HTTP_PROXY and NO_PROXY: the proxy would receive the token
  of a local server in clear text. Other requests use the proxy of the environment.
- Redirects are not followed, so that a token or key reaches only the server in the URL.
- Every status is a response. Only a request without a response raises.
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


class RequestFailed(OSError):  # noqa: N818  not a fault of this program
    """No response: no connection, a timeout, or an answer that is not HTTP. The text is the reason."""


@dataclass(frozen=True)
class Response:
    """An HTTP response.

    Args:
        url: the URL of the request.
        status: any status, such as 200, 302, 404 or 503.
        body: the whole body.
        headers: values by lower-case name.
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
            ValueError: the body is not JSON.
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
    """Send one request and read the whole response.

    Args:
        url: `http://` or `https://`.
        method: default: GET, or POST if there is `data`.
        data: the body.
        headers: the request's headers.
        timeout: seconds for each wait: for the connection, for the response's head, for each read.

    Raises:
        RequestFailed: there is no response.
    """
    try:
        prepared = urllib.request.Request(url, data, dict(headers or {}), method=method)
        proxies = {} if is_loopback(prepared.host) else urllib.request.getproxies()
        with _opener(tuple(sorted(proxies.items()))).open(prepared, timeout=timeout) as response:
            fields = {name.lower(): value for name, value in response.headers.items()}
            return Response(url, response.status, response.read(), fields)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RequestFailed(_reason(error)) from error


def netloc(host: str, port: int) -> str:
    """The part of a URL that names a host and a port; an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str | None) -> bool:
    """Whether the host of a URL, with or without a port, is `localhost` or a loopback address.

    No DNS lookup is made. The unspecified address counts, because connecting to 0.0.0.0 reaches this machine.
    """
    name = (host or "").rpartition("@")[2]
    if name.startswith("["):
        return _is_this_machine(name[1:].partition("]")[0])
    before, _, port = name.rpartition(":")  # http.client, too, takes the text after the last colon as the port
    return _is_this_machine(name) or (port.isdigit() and _is_this_machine(before))


def _is_this_machine(name: str) -> bool:
    address = _address(name)
    if address is None:
        return name.lower().removesuffix(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of a numeric host as `connect` reads it (127.1 is 127.0.0.1); None for a name."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError):
            return None


@functools.cache
def _opener(proxies: tuple[tuple[str, str], ...]) -> urllib.request.OpenerDirector:
    """An opener without urllib's handlers for redirects, errors, files and FTP. Creating one loads certificates."""
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
    """Why there is no response, in a few words."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
