"""`genflow jobs`: the jobs of a cluster."""

from typing import Annotated

import typer

from genflow.cli import console
from genflow.cli.dispatch import is_verbose
from genflow.cli.options import Address, AsJson

app = typer.Typer(help="Jobs on a cluster.", no_args_is_help=True)
Job = Annotated[str, typer.Argument(help="The job's id.")]


@app.command("ls")
def list_jobs(address: Address = "", json: AsJson = False) -> None:
    """List a cluster's genflow jobs."""
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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job ends.")] = False,
) -> None:
    """Print a job's log."""
    from genflow.launch import remote

    for text in remote.jobs_logs(address, job, follow=follow):
        print(text, end="", flush=True)


@app.command()
def attach(
    job: Annotated[str, typer.Argument(help="The job's id, a prefix, or `latest`.")],
    address: Address = "",
    json: AsJson = False,
) -> None:
    """Follow a job again."""
    from genflow.launch import remote

    with console.Progress() as progress:
        done = remote.attach(address, job, progress, verbose=is_verbose())
    if json:
        console.document(done)
        return
    made = done.get("run") or done.get("dataset") or done.get("report") or done.get("status", "")
    print(f"job      {job}  {made}")


@app.command()
def stop(job: Job, address: Address = "") -> None:
    """Stop a job; its run can go on later."""
    from genflow.launch import remote

    stopped = remote.jobs_stop(address, job)
    again = "serves again" if job.startswith("serve-") else "goes on from its last checkpoint"
    print(f"stopped  {stopped['id']}; the same command again {again}")
