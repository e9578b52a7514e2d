"""Objects in an S3 bucket, through pyarrow. Requests are repeated until a deadline; errors are one line.

The bucket and its prefix are `s3://bucket/prefix`. Endpoint, region and credentials come from the variables and files
that every AWS tool reads: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE and
~/.aws, or the role of the machine. Temporary errors (no connection, 429, 5xx, a broken transfer) are retried with
growing pauses for GENFLOW_STORE_DEADLINE seconds (default 60). Permanent errors (wrong credentials, no such bucket) are
raised at once.
"""

import functools
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genflow.errors import SetupError, UsageError

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

T = TypeVar("T")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 15.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0
CHUNK = 2**22  # bytes
ACCESS_ERRORS = (
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT"
    r"|MISSING_AUTHENTICATION|ExpiredToken|InvalidToken|status 40[13]\)"
)
FORWARDED_VARIABLES = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "GENFLOW_STORE_DEADLINE"
)  # fmt: skip
"""The environment variables that are sent to a job on another machine. Credentials are never sent."""

ObjectVersion = tuple[int, int]
"""Size in bytes and modification time in ns. If both are the same, the object has not changed."""


def deadline_s() -> float:
    """For how many seconds a request is repeated.

    Raises:
        UsageError: GENFLOW_STORE_DEADLINE is not a number.
    """
    text = os.environ.get("GENFLOW_STORE_DEADLINE") or "60"
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"GENFLOW_STORE_DEADLINE {text!r} is not a number of seconds", "set it to 60") from None


def endpoint() -> str:
    """The URL of the S3 server; empty for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


class Bucket:
    """The objects of a bucket below a prefix.

    Args:
        url: `s3://bucket/prefix`.

    Raises:
        UsageError: the URL is not `s3://bucket/prefix`.
    """

    def __init__(self, url: str) -> None:
        found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[^/?#]+)*)/?", url)
        if found is None:
            raise UsageError(f"the store {url} is neither a folder nor s3://bucket/prefix",
                             "export GENFLOW_STORE=s3://BUCKET/PREFIX")  # fmt: skip
        self.name, self.prefix = found[1], found[2].strip("/")
        self.url = f"s3://{self.name}" + (f"/{self.prefix}" if self.prefix else "")
        self.unreachable = False

    @functools.cached_property
    def filesystem(self) -> "S3FileSystem":
        """pyarrow's file system, which sends each request once: `_retry` repeats it."""
        return self._open(attempts=1)

    @functools.cached_property
    def upload_filesystem(self) -> "S3FileSystem":
        """The file system for uploads. It retries by itself: only pyarrow can repeat one part of a multipart upload."""
        return self._open(attempts=3)

    def _open(self, attempts: int) -> "S3FileSystem":
        """A file system that looks up the credentials itself, so that it contains none when it is pickled."""
        from pyarrow import fs

        scheme, _, host = endpoint().rpartition("://")
        return fs.S3FileSystem(
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            or ("us-east-1" if host else None),
            endpoint_override=host.rstrip("/") or None, scheme=scheme or "https",
            connect_timeout=CONNECT_TIMEOUT_S, request_timeout=READ_TIMEOUT_S,
            allow_delayed_open=True,  # a small file takes one PUT
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") if scheme != "http" else None,
        )  # fmt: skip

    def path(self, key: str) -> str:
        """pyarrow's name of an object or a prefix."""
        return "/".join(part for part in (self.name, self.prefix, key) if part)

    # --- Requests

    def check(self) -> None:
        """Raise SetupError if the bucket does not exist or cannot be read; its objects would seem to be missing."""
        from pyarrow import fs

        info = self._retry("look for the bucket", lambda: self.filesystem.get_file_info(self.name))
        if info.type == fs.FileType.NotFound:
            raise SetupError(f"there is no bucket {self.name} for the store {self.url}", f"aws s3 mb s3://{self.name}")

    def version(self, key: str) -> ObjectVersion | None:
        """Size and modification time of an object; None if it does not exist."""
        from pyarrow import fs

        info = self._retry(f"look for {key}", lambda: self.filesystem.get_file_info(self.path(key)))
        return (info.size, info.mtime_ns) if info.type == fs.FileType.File else None

    def list(self, key: str, *, deep: bool = False) -> dict[str, ObjectVersion | None]:
        """The names below a prefix, each with its size and modification time; None for a name that is a prefix."""
        from pyarrow import fs

        where = self.path(key)
        wanted = fs.FileSelector(where, recursive=deep, allow_not_found=True)
        found = self._retry(f"list {key}", lambda: self.filesystem.get_file_info(wanted))
        return {
            info.path[len(where) + 1 :]: (info.size, info.mtime_ns) if info.type == fs.FileType.File else None
            for info in found
        }

    def read(self, key: str) -> bytes | None:
        """The content of a small object; None if it does not exist."""

        def get() -> bytes:
            with self.filesystem.open_input_stream(self.path(key)) as stream:
                return bytes(stream.read())

        return self._retry(f"read {key}", lambda: self._none_if_missing(get))

    def write(self, key: str, content: bytes) -> None:
        """Write a small object in one request."""

        def put() -> None:
            with self.filesystem.open_output_stream(self.path(key), compression=None) as stream:
                stream.write(content)

        self._retry(f"write {key}", put)

    def upload(self, file: Path, key: str) -> None:
        """Upload a file."""

        def put() -> None:
            stream = self.upload_filesystem.open_output_stream(self.path(key), compression=None)
            with open(file, "rb") as source, stream:
                while chunk := source.read(CHUNK):
                    stream.write(chunk)

        self._retry(f"write {key}", put)

    def download(self, key: str, file: Path) -> str | None:
        """Download an object to a file. Return its SHA-256, or None if the object does not exist.

        Each part has its own deadline and is repeated alone, so that a large file arrives over a poor connection.
        """
        open_file = functools.partial(self.filesystem.open_input_file, self.path(key))
        source = self._retry(f"read {key}", lambda: self._none_if_missing(open_file))
        if source is None:
            return None
        seen, size = hashlib.sha256(), source.size()
        with source, open(file, "wb") as target:
            for at in range(0, size, CHUNK):
                part = functools.partial(source.read_at, CHUNK, at)
                chunk = self._retry(f"read {key}", functools.partial(self._none_if_missing, part))
                if chunk is None:
                    return None
                seen.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        return seen.hexdigest()

    def delete(self, key: str) -> None:
        """Delete one object, if it exists."""

        self._retry(f"delete {key}", lambda: self._none_if_missing(lambda: self.filesystem.delete_file(self.path(key))))

    def delete_all(self, key: str) -> None:
        """Delete everything below a prefix."""

        self._retry(f"delete {key}", lambda: self._none_if_missing(lambda: self.filesystem.delete_dir(self.path(key))))

    @staticmethod
    def _none_if_missing(request: Callable[[], T]) -> T | None:
        """The result of a request; None if the object does not exist."""
        try:
            return request()
        except FileNotFoundError:
            return None

    def _retry(self, action: str, request: Callable[[], T]) -> T:
        """Repeat a request until it succeeds, at most until the deadline.

        Args:
            action: what the request does, for the error message.
            request: the call.

        Raises:
            SetupError: the deadline passed, or repeating cannot help; one line with the cure in its hint.
        """
        # after one request has timed out, the other requests of the same command do not wait again
        deadline = time.monotonic() + (0.0 if self.unreachable else deadline_s())
        pause = FIRST_PAUSE_S
        while True:
            try:
                result = request()
                self.unreachable = False
                return result
            except OSError as error:
                if error.errno is not None and "AWS" not in str(error):
                    raise  # an error of this machine's disk
                self._raise_if_permanent(action, error)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self.unreachable = True
                    raise SetupError(
                        f"the store {self.url} at {endpoint() or 'Amazon S3'} did not answer for "
                        f"{deadline_s():g} s ({action}: {_reason(error)})",
                        "check AWS_ENDPOINT_URL and the network, then run the same command again: it resumes",
                    ) from error
            time.sleep(min(remaining, pause * random.uniform(0.5, 1)))
            pause = min(2 * pause, MAX_PAUSE_S)

    def _raise_if_permanent(self, action: str, error: OSError) -> None:
        """Raise SetupError if repeating the request cannot help."""
        text = str(error)
        if "NO_SUCH_BUCKET" in text:
            raise SetupError(f"there is no bucket {self.name} for the store {self.url}", f"aws s3 mb s3://{self.name}"
                             ) from error
        if re.search(ACCESS_ERRORS, text):
            raise SetupError(
                f"the store {self.url} refuses to {action}: {_reason(error)}",
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) and their permissions for this "
                "bucket",
            ) from error
        if re.search(r"status 30[17]\)|PERMANENT_REDIRECT|AuthorizationHeaderMalformed|IllegalLocation", text):
            raise SetupError(f"the bucket {self.name} is in another region", "set AWS_REGION to that region") from error
        if re.search(r"status 400\)|VALIDATION|INVALID_PARAMETER", text):
            raise SetupError(f"the store {self.url} rejected the request to {action}: {_reason(error)}",
                             "check AWS_ENDPOINT_URL and AWS_REGION") from error  # fmt: skip


def _reason(error: Any) -> str:
    """The reason at the end of pyarrow's message, in a few words."""
    text = " ".join(str(error).split())
    found = re.search(r"AWS Error (.+?) during \w+ operation(?:: (.*))?$", text)
    if not found:
        return text[:160]
    words = re.sub(r" ?\(Request ID: .*", "", found[2] or "")
    code = found[1].removeprefix("UNKNOWN ").strip("()").replace("HTTP status", "HTTP")
    curl = re.search(r"Details: (.*)", words)
    return (curl[1] if curl else f"{code}: {words}" if words and "No response body" not in words else code)[:160]
