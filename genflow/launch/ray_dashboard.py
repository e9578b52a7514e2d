"""Ray's dashboard over HTTP: where it is, whether it lets us in, and what the cluster behind it has."""

import importlib.metadata
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from genflow.errors import ClusterError, UsageError
from genflow.system import environment, http

PORT = 8265  # where Ray's dashboard listens
TIMEOUT_S = 10.0  # the longest that one request waits


class Unreachable(ClusterError):  # noqa: N818  a state of the cluster, which may pass
    """Nobody answers, at this moment."""


class NotFound(UsageError):  # noqa: N818
    """The dashboard does not know what is asked for."""


@dataclass(frozen=True)
class Dashboard:
    """A cluster, seen from outside.

    Args:
        address: `http://head:8265`.
    """

    address: str

    @classmethod
    def at(cls, address: str | None) -> "Dashboard":
        """The cluster that a person means: an address, or the usual Ray variables, or this machine.

        Raises:
            UsageError: that is no dashboard's address.
        """
        named = (address, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
        given = next((name.strip() for name in named if name and name.strip() not in ("", "auto")), f"127.0.0.1:{PORT}")
        hint = f"give the dashboard's address, such as http://HOST:{PORT}"
        if given.startswith("ray://"):
            raise UsageError(f"{given} is the address of Ray Client, which genflow does not use", hint)
        try:
            parts = urlsplit(given if "://" in given else f"http://{given}")
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{given!r} is no address: {error}", hint) from error
        host_like = parts.hostname and re.fullmatch(r"[\w.:-]+", parts.hostname) and not set("?#") & set(given)
        if parts.scheme not in ("http", "https") or not host_like:
            raise UsageError(f"{given!r} is no dashboard's address", hint)
        if parts.username or parts.password:
            raise UsageError("the address holds a password", "Ray knows a token instead: ~/.ray/auth_token")
        host = parts.netloc if port or "://" in given else f"{parts.netloc}:{PORT}"
        return cls(f"{parts.scheme}://{host}{parts.path.rstrip('/')}")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, or at the other end of a tunnel."""
        return http.is_loopback(urlsplit(self.address).netloc)

    def mode(self) -> str:
        """Whether it asks for a token: `token` or `disabled`.

        Raises:
            ClusterError: it is unreachable, or is no dashboard of Ray's.
        """
        try:
            answer = self.ask("/api/authentication_mode", missing="authentication")
        except NotFound:  # older than tokens
            return "disabled"
        return str(answer.get("authentication_mode", "disabled")) if isinstance(answer, dict) else "disabled"

    def ray_version(self) -> str:
        """Which Ray runs there.

        Raises:
            ClusterError: it refuses the token, or is of another minor release than the one here.
        """
        answer = self.ask("/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise ClusterError(f"what answers at {self.address} is not Ray's dashboard", "give the dashboard's address")
        there, here = str(answer["ray_version"]), importlib.metadata.version("ray")
        if there.split(".")[:2] != here.split(".")[:2]:
            raise ClusterError(
                f"the cluster runs Ray {there}, and this genflow Ray {here}",
                f"install ray=={here} on the cluster: Ray's minor releases break callers",
            )
        return there

    def python_version(self) -> str:
        """Which Python runs there.

        Raises:
            ClusterError: one that is too old.
        """
        python = str(self.ask("/api/v0/cluster_metadata")["data"]["pythonVersion"])
        if tuple(map(int, python.split(".")[:2])) < (3, 11):
            raise ClusterError(f"the cluster runs Python {python}", "genflow needs Python 3.11 or newer there")
        return python

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive: `id`, `name`, `address`, whether it is the `head`, the `resources` it has in all,
        and the `group` that an autoscaler made it for (empty: nobody did)."""
        answer = self.ask("/api/v0/nodes?detail=1&limit=10000")
        return [
            {"id": node["node_id"], "name": node["node_name"], "address": node["node_ip"], "head": node["is_head_node"],
             "resources": node["resources_total"], "group": (node.get("labels") or {}).get("ray.io/node-group", "")}
            for node in answer["data"]["result"]["result"]
            if node["state"] == "ALIVE"
        ]  # fmt: skip

    def ask(self, path: str, method: str = "GET", *, missing: str = "") -> Any:
        """One request; its JSON answer.

        Args:
            path: with its query.
            method: GET or POST.
            missing: what to call that which a 404 says is not there.

        Raises:
            ClusterError: nobody answers, or the answer is no.
            Missing: there is no such thing.
        """
        try:
            answer = http.request(self.address + path, method=method, headers=headers(), timeout=TIMEOUT_S)
        except http.RequestFailed as error:
            raise Unreachable(
                f"no Ray dashboard answers at {self.address}: {error}",
                "is it the dashboard's address, and is the cluster up? For one of `ray up`: ray dashboard cluster.yaml",
            ) from error
        if answer.status == 404 and missing:
            raise NotFound(f"the cluster has no {missing}", "genflow jobs ls")
        if not answer.ok:
            raise self._refusal(answer)
        try:
            return answer.json()
        except ValueError as error:
            raise ClusterError(
                f"what answers at {self.address} is not Ray's dashboard", "give the dashboard's address"
            ) from error

    def _refusal(self, answer: http.Response) -> ClusterError:
        """The error that an HTTP status means."""
        path = environment.token_path()
        cure = f"copy the head's ~/.ray/auth_token to {path}, mode 0600, or name another: RAY_AUTH_TOKEN_PATH"
        if answer.status == 401:
            return ClusterError(f"the cluster at {self.address} asks for a token, and there is none", cure)
        if answer.status == 403:
            source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(path)
            return ClusterError(f"the cluster at {self.address} refuses the token of {source}", cure)
        if answer.status >= 500:
            return Unreachable(f"the dashboard at {self.address} answers {answer.status}", "is the cluster well?")
        return ClusterError(
            f"what answers at {self.address} is not Ray's dashboard ({answer.status} for {answer.url})",
            "give the dashboard's address",
        )


def headers() -> dict[str, str]:
    """What a request carries: Ray's token, if there is one."""
    token = environment.token()
    return {"Authorization": f"Bearer {token}"} if token else {}
