"""Write cluster.yaml and the files of deploy/ from deploy/templates and the tested versions.

    python deploy/render.py                             # make deploy
    python deploy/render.py --check                     # exit code 1 if a file differs from its template
    python deploy/render.py --serve serve.yaml -o service.yaml    # a RayService from `genflow serve --config-out`
"""

import argparse
import re
import sys
from pathlib import Path

import jinja2

DEPLOY = Path(__file__).resolve().parent
ROOT = DEPLOY.parent
SERVE = DEPLOY / "templates/serve.yaml"  # as `genflow serve --config-out` writes it; its key is a placeholder
WRITTEN = {
    "cluster.yaml": "aws.yaml",
    "deploy/gcp.yaml": "gcp.yaml",
    "deploy/onprem.yaml": "onprem.yaml",
    "deploy/Containerfile": "Containerfile",
    "deploy/kuberay/store.yaml": "store.yaml",
    "deploy/kuberay/cluster.yaml": "raycluster.yaml",
    "deploy/kuberay/job.yaml": "rayjob.yaml",
    "deploy/kuberay/service.yaml": "rayservice.yaml",
}


def variables() -> dict[str, str]:
    """The templates' variables: versions from constraints.txt and pyproject.toml, the store's path, the image."""
    ray = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    project = (ROOT / "pyproject.toml").read_text()
    version, python = re.search(r'^version = "(.+)"', project, re.M), re.search(r'requires-python = ">=(.+)"', project)
    assert ray is not None
    assert version is not None
    assert python is not None
    return {"ray": ray[1], "genflow": version[1], "python": python[1], "store": "/srv/genflow",
            "image": f"genflow:{version[1]}-ray{ray[1]}"}  # fmt: skip


def render(template: str, serve: str = "") -> str:
    """The text of one file.

    Args:
        template: its name in deploy/templates.
        serve: Ray Serve's configuration, for a RayService; empty: that of deploy/templates/serve.yaml.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DEPLOY / "templates"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(variables(), serve=serve or SERVE.read_text())


def main() -> int:
    """Write the files; with --check, return 1 if a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file differs")
    parser.add_argument("--serve", type=Path, help="the output of `genflow serve --config-out`")
    parser.add_argument("-o", "--out", type=Path, default=Path("service.yaml"))
    given = parser.parse_args()
    if given.serve:
        given.out.write_text(render("rayservice.yaml", given.serve.read_text()))
        return 0
    stale = [name for name, template in WRITTEN.items()
             if not (ROOT / name).is_file() or (ROOT / name).read_text() != render(template)]  # fmt: skip
    for name in stale:
        print(name)
        if not given.check:
            (ROOT / name).write_text(render(WRITTEN[name]))
    return int(given.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
