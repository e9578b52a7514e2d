"""Requests to Ray's dashboard over HTTP: its address, authentication, versions and nodes."""

import importlib.metadata
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from genflow.errors import ClusterError, UsageError
from genflow.system import environment, http

PORT = 8265  # default port of Ray's dashboard
TIMEOUT_S = 10.0  # of one request


class Unreachable(ClusterError):  # noqa: N818  may be temporary
    """The dashboard does not answer at the moment."""


class NotFound(UsageError):  # noqa: N818
    """The dashboard has no such object."""


@dataclass(frozen=True)
class Dashboard:
    """The dashboard of a cluster.

    Args:
        address: its URL, such as `http://head:8265`.
    """

    address: str

    @classmethod
    def at(cls, address: str | None) -> "Dashboard":
        """The dashboard at an address; by default at RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine.

        Raises:
            UsageError: the address is not a dashboard's.
        """
        candidates = (address, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
        given = next(
            (name.strip() for name in candidates if name and name.strip() not in ("", "auto")), f"127.0.0.1:{PORT}"
        )
        hint = f"give the dashboard's address, such as http://HOST:{PORT}"
        if given.startswith("ray://"):
            raise UsageError(f"{given} is a Ray Client address, which genflow cannot use", hint)
        try:
            parts = urlsplit(given if "://" in given else f"http://{given}")
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{given!r} is not a valid address: {error}", hint) from error
        host_like = parts.hostname and re.fullmatch(r"[\w.:-]+", parts.hostname) and not set("?#") & set(given)
        if parts.scheme not in ("http", "https") or not host_like:
            raise UsageError(f"{given!r} is not a dashboard address", hint)
        if parts.username or parts.password:
            raise UsageError("the address contains a password", "Ray uses a token instead: ~/.ray/auth_token")
        host = parts.netloc if port or "://" in given else f"{parts.netloc}:{PORT}"
        return cls(f"{parts.scheme}://{host}{parts.path.rstrip('/')}")

    @property
    def is_local(self) -> bool:
        """Whether the address is on the loopback of this machine, possibly through a tunnel."""
        return http.is_loopback(urlsplit(self.address).netloc)

    def mode(self) -> str:
        """The authentication mode: `token` or `disabled`.

        Raises:
            ClusterError: the server is unreachable, or is not a Ray dashboard.
        """
        try:
            answer = self.request("/api/authentication_mode", missing="authentication")
        except NotFound:  # this Ray is older than token authentication
            return "disabled"
        return str(answer.get("authentication_mode", "disabled")) if isinstance(answer, dict) else "disabled"

    def ray_version(self) -> str:
        """The Ray version of the cluster.

        Raises:
            ClusterError: the cluster rejects the token, or its minor release differs from the local one.
        """
        answer = self.request("/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise ClusterError(
                f"the server at {self.address} is not a Ray dashboard", "give the dashboard's address with --address"
            )
        there, here = str(answer["ray_version"]), importlib.metadata.version("ray")
        if there.split(".")[:2] != here.split(".")[:2]:
            raise ClusterError(
                f"the cluster runs Ray {there}, but this machine has Ray {here}",
                f"install the same version on both sides: ray=={here} on the cluster, or ray=={there} here",
            )
        return there

    def python_version(self) -> str:
        """The Python version of the cluster.

        Raises:
            ClusterError: it is older than 3.11.
        """
        python = str(self.request("/api/v0/cluster_metadata")["data"]["pythonVersion"])
        if tuple(map(int, python.split(".")[:2])) < (3, 11):
            raise ClusterError(f"the cluster runs Python {python}", "genflow needs Python 3.11 or newer on the cluster")
        return python

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive: `id`, `name`, `address`, `head` (bool), total `resources`, and `group`.

        The group is the autoscaler's node group; it is empty for a node that no autoscaler started.
        """
        answer = self.request("/api/v0/nodes?detail=1&limit=10000")
        return [
            {"id": node["node_id"], "name": node["node_name"], "address": node["node_ip"], "head": node["is_head_node"],
             "resources": node["resources_total"], "group": (node.get("labels") or {}).get("ray.io/node-group", "")}
            for node in answer["data"]["result"]["result"]
            if node["state"] == "ALIVE"
        ]  # fmt: skip

    def request(self, path: str, method: str = "GET", *, missing: str = "") -> Any:
        """Send a request and return its JSON answer.

        Args:
            path: path with query string.
            method: GET or POST.
            missing: description of the requested object, for the error after status 404.

        Raises:
            ClusterError: the dashboard does not answer, or answers with an error.
            NotFound: the object does not exist.
        """
        try:
            answer = http.request(self.address + path, method=method, headers=headers(), timeout=TIMEOUT_S)
        except http.RequestFailed as error:
            raise Unreachable(
                f"no Ray dashboard answers at {self.address}: {error}",
                "check that the cluster is running, and give the dashboard's address with --address; for a cluster of "
                "`genflow cluster up`, open a tunnel: genflow cluster dashboard",
            ) from error
        if answer.status == 404 and missing:
            raise NotFound(f"the cluster has no {missing}", "genflow jobs ls")
        if not answer.ok:
            raise self._error_for(answer)
        try:
            return answer.json()
        except ValueError as error:
            raise ClusterError(
                f"the server at {self.address} is not a Ray dashboard", "give the dashboard's address with --address"
            ) from error

    def _error_for(self, answer: http.Response) -> ClusterError:
        """The error for an HTTP status."""
        path = environment.token_path()
        cure = f"copy ~/.ray/auth_token of the head node to {path} with mode 0600, or set RAY_AUTH_TOKEN_PATH"
        if answer.status == 401:
            return ClusterError(f"the cluster at {self.address} requires a token, and this machine has none", cure)
        if answer.status == 403:
            source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(path)
            return ClusterError(f"the cluster at {self.address} rejects the token from {source}", cure)
        if answer.status >= 500:
            return Unreachable(
                f"the dashboard at {self.address} answers with status {answer.status}",
                "check that the cluster is running",
            )
        return ClusterError(
            f"the server at {self.address} is not a Ray dashboard ({answer.status} for {answer.url})",
            "give the dashboard's address with --address",
        )


def headers() -> dict[str, str]:
    """The headers of a request: Ray's token, if there is one."""
    token = environment.token()
    return {"Authorization": f"Bearer {token}"} if token else {}
