"""MLflow's pages as `genflow ui` serves them: they open at the newest run's experiment, with the columns of quality.

MLflow keeps the state of its pages in the browser. A script at the start of its page gives defaults to what a new
browser lacks: the pages of model training (not of agents), a closed assistant, the columns of an experiment and the
pictures of a run. It replaces nothing that a user has chosen. If a later MLflow names these entries otherwise, its own
defaults appear.

`mlflow server --app-name genflow` finds `create_app` by the entry point in pyproject.toml.
"""

import json
import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from genflow.system.documents import Json
from genflow.tracking.experiments import TABLE

APP = "genflow"  # the name of the entry point
RUN_PAGE: Json = {
    "compareRunSections": [{"uuid": "samples", "name": "samples", "display": True, "isReordered": True}],
    "compareRunCharts": [
        {
            "uuid": key, "type": "IMAGE", "runsCountToCompare": 10, "metricSectionId": "samples", "deleted": False,
            "isGenerated": True, "imageKeys": [f"samples/{key}"], "showRunParams": False,
        }
        for key in ("ema", "evaluation")
    ],
    "isAccordionReordered": True,
    "autoRefreshEnabled": True,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
}  # fmt: skip
"""The charts of a run's page: pictures first and whole; MLflow itself adds a chart of each metric."""
SCRIPT = """<script>
const defaults = [
  [/^mlflow\\.workflowType_v1$/, "machine_learning"],
  [/^mlflow\\.assistant\\.fab\\.autoOpenedOnFirstLoad_v1$/, true],
  [/-ExperimentPage-\\["\\d+"\\]-ReactComponentState$/, TABLE],
  [/-RunPage-.*-model-chartUIState$/, RUN_PAGE],
];
const stored = Storage.prototype.getItem;
Storage.prototype.getItem = function (key) {
  const found = stored.call(this, key), known = defaults.find(([name]) => name.test(key));
  return found === null && known && this === window.localStorage ? JSON.stringify(known[1]) : found;
};
if (NEWEST && !location.hash) location.replace(`#/experiments/${NEWEST}/runs`);
</script>"""


def is_registered() -> bool:
    """Whether this installation has the entry point; an older one in place of this code may lack it."""
    return any(entry_points(group="mlflow.app", name=APP))


def create_app() -> Any:
    """MLflow's server with another first page. MLFLOW_TRACKING_URI names the database that it serves."""
    from fastapi.responses import HTMLResponse
    from mlflow import server
    from mlflow.server.fastapi_app import app
    from starlette.routing import Route

    page = Path(server.__file__).parent / "js" / "build" / "index.html"

    def first_page(request: Any) -> HTMLResponse:
        return HTMLResponse(with_script(page.read_text(encoding="utf-8"), _newest_experiment()))

    app.router.routes.insert(0, Route("/", first_page))
    return app


def with_script(page: str, newest: str) -> str:
    """MLflow's page with the script at its start.

    Args:
        page: HTML.
        newest: the id of the experiment to open; empty: MLflow's home.
    """
    values = {"TABLE": TABLE, "RUN_PAGE": RUN_PAGE, "NEWEST": newest}
    script = re.sub("|".join(values), lambda found: json.dumps(values[found[0]]), SCRIPT)
    return page.replace("<head>", f"<head>{script}", 1)


def _newest_experiment() -> str:
    """The id of the experiment with the newest run; empty if there is no run."""
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1)
    return str(runs[0].info.experiment_id) if runs else ""
