"""`genflow jobs`: list, follow and stop jobs on a cluster."""

from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import is_verbose
from genflow.cli.options import Address, AsJson
from genflow.cli.progress import Progress
from genflow.cli.words import Listing

app = typer.Typer(cls=Listing, help="List, follow and stop jobs on a cluster; alone, list them.")
Job = Annotated[str, typer.Argument(help="Job id, its first characters, or `latest`.")]


@app.command("ls")
def list_jobs(address: Address = "", json: AsJson = False) -> None:
    """List the genflow jobs on a cluster."""
    from genflow.launch import remote

    jobs = remote.jobs_list(address)
    if json:
        console.document({"schema": "genflow.jobs/1", "jobs": jobs})
        return
    rows = [(job["id"], job.get("stage") or "", job["status"], job.get("started") or "") for job in jobs]
    print(console.table(("job", "stage", "status", "started"), rows, left=4) if rows else "no jobs")


@app.command()
def logs(
    job: Job,
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the job ends.")] = False,
) -> None:
    """Print the log of a job."""
    from genflow.launch import remote

    for text in remote.jobs_logs(address, job, follow=follow):
        print(text, end="", flush=True)


@app.command()
def attach(
    job: Annotated[str, typer.Argument(help="Job id, its first characters, or `latest`.")],
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Show the progress of a job until it ends."""
    from genflow.launch import remote

    with Progress() as progress:
        done = remote.attach(address, job, progress, verbose=is_verbose())
    if json:
        console.document(done)
        return
    made = done.get("run") or done.get("dataset") or done.get("report") or done.get("status", "")
    print(f"job      {job}  {made}")


@app.command()
def stop(job: Job, address: Address = "") -> None:
    """Stop a job after it has saved a checkpoint; the same command can resume it later."""
    from genflow.launch import remote

    stopped = remote.jobs_stop(address, job)
    again = "start the endpoint again" if job.startswith("serve-") else "resume from its last checkpoint"
    print(f"stopped  {stopped['id']}; run the same command again to {again}")
