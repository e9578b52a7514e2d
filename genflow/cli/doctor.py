"""`genflow doctor`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from genflow.cli import console
from genflow.cli.options import Address, AsJson
from genflow.errors import BY_CODE, GenflowError, SetupError

if TYPE_CHECKING:  # `genflow --help` imports this module
    from genflow.launch.preflight import Check


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster/--local", help="Also check a Ray cluster.")] = False,
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Check this machine, and with --cluster a cluster; print how to fix each problem."""
    from genflow.launch import local_checks

    checks = [*local_checks.checks(), *(_cluster(address) if cluster else ())]
    bad = [check for check in checks if not check.ok]
    if json:
        console.document({"schema": "genflow.doctor/1", "ok": not bad, "checks": [asdict(c) for c in checks]})
    else:
        for check in checks:
            print(f"{'✔' if check.ok else '✘'} {check.name:<20} {check.found}")
            if not check.ok and check.cure:
                print(f"    fix: {check.cure}")
    if bad:
        names = ", ".join(check.name for check in bad)
        kind = BY_CODE.get(bad[0].code, SetupError)
        raise kind(f"{len(bad)} of {len(checks)} checks failed: {names}", bad[0].cure)


def _cluster(address: str) -> Iterator["Check"]:
    """The checks that run before a job is sent to a cluster."""
    from genflow.launch import remote
    from genflow.launch.preflight import Check

    try:
        yield from remote.checks(address)
    except GenflowError as error:
        yield Check("address", False, error.message, error.hint, error.code)
