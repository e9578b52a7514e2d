"""The verdict of the tables as sentences, and the description and limits of the measurement."""

from collections import Counter

from genflow.evaluation.interval import order
from genflow.evaluation.report.table import number
from genflow.evaluation.results import FAR
from genflow.system.documents import Json
from genflow.tables.claims import interval
from genflow.tables.formatting import count, measured_sides, percent


def verdict(document: Json) -> list[str]:
    """The sentences, most important first."""
    parts = (_training, _quality, _steps, _speed, _coverage, _stability, _claims)
    return [sentence for part in parts if (sentence := part(document))]


def _named(document: Json, quantity: str) -> list[tuple[str, Json]]:
    """The title and the quantity of each method that has it."""
    found = [(m["title"], m["quantities"].get(quantity)) for m in document["methods"].values()]
    return [(title, q) for title, q in found if q and q.get("value") is not None]


def _quality(document: Json) -> str:
    ranked = sorted(_named(document, "fd"), key=lambda pair: pair[1]["value"])
    if not ranked:
        return ""
    title, best = ranked[0]
    equal = [name for name, fd in ranked[1:] if order(interval(fd), interval(best)) == 0]
    equal_text = f"; {_list(equal)} {'does' if len(equal) == 1 else 'do'} not differ significantly" if equal else ""
    last, least = ranked[-1]
    differs = order(interval(least), interval(best)) != 0
    worst = f" {last} has the worst: fd {number(least['value'])}." if differs else ""
    limit = (document.get("latents") or {}).get("limit")
    known = [f"real data: {number(best['floor'])}"] if best["floor"] else []
    known += [f"reconstructions: {number(limit['value'])}"] if limit else []
    floor = f" ({'; '.join(known)})" if known else ""
    return f"{title} has the best samples: fd {number(best['value'])}{floor}{equal_text}.{worst}"


def _training(document: Json) -> str:
    """A warning if even the best fd is far above its floor: then the verdicts say little about the families."""
    ratios = [fd["value"] / fd["floor"] for _, fd in _named(document, "fd") if fd["floor"]]
    if not ratios or min(ratios) <= FAR:
        return ""
    return (
        f"These models are barely trained: the smallest fd is {min(ratios):.0f} times the fd of real data. The "
        f"verdicts hold for this training budget only; a larger --cpu-minutes says more about the families."
    )


def _steps(document: Json) -> str:
    found = [(title, steps) for title, steps in _named(document, "steps") if steps["tried"] > 1]
    if not found:
        return ""
    parts = []
    for title, steps in found:
        more = " or more" if steps["high"] is None else ""
        parts.append(f"{title} {count(steps['value'])}{more}")
    within = percent(document["tolerance"])
    return f"Network evaluations needed to be within {within} of the method's own best fd: {'; '.join(parts)}."


def _speed(document: Json) -> str:
    ranked = sorted(_named(document, "ms_needed"), key=lambda pair: pair[1]["value"])
    if len(ranked) < 2:
        return ""
    (fast, least), (slow, most) = ranked[0], ranked[-1]
    return (
        f"With as many evaluations as each method needs, {fast} is the fastest ({number(least['value'])} ms per sample "
        f"in batches of 64) and {slow} the slowest ({number(most['value'])} ms)."
    )


def _coverage(document: Json) -> str:
    missing = [
        f"{title} ({count(found['value'])} of {found['of']})"
        for title, found in _named(document, "grid_captured")
        if found["value"] < found["of"]
    ]
    parts = [f"Methods that miss modes of the grid of Gaussians: {_list(missing)}."] if missing else []
    ceilings = [found["value"] for _, found in _named(document, "stacked_ceiling")]
    stacks: dict[tuple[str, float], str] = {}  # methods that share a run share its trial
    for method in document["methods"].values():
        found = method["quantities"].get("stacked_captured")
        if found and found["high"] < ceilings[0]:
            stacks.setdefault((method["run"], found["value"]), f"{method['title']} {count(found['value'])}")
    if stacks:
        real = count(ceilings[0])
        parts.append(f"Captured modes of stacked digits: as many real samples {real}, {_list(list(stacks.values()))}.")
    return " ".join(parts)


def _stability(document: Json) -> str:
    by_run: dict[str, str] = {}
    for method in document["methods"].values():
        found = method["quantities"].get("diverged")
        if found and found["value"] > 0:
            by_run.setdefault(method["run"], f"{method['title']} {sum(found['each']):.0f} of {len(found['each'])}")
    return f"Trainings that diverged: {_list(list(by_run.values()))}." if by_run else ""


def _claims(document: Json) -> str:
    claims = document["claims"]
    number_of = Counter(claim["verdict"] for claim in claims)
    names = ("confirmed", "refuted", "undecided", "not measured")
    counts = [f"{number_of[name]} {name}" for name in names if number_of[name]]
    against = [f"“{c['says']}” ({measured_sides(c)})" for c in claims if c["verdict"] == "refuted"]
    refuted = f" Refuted on this data: {'; '.join(against)}." if against else ""
    return f"Verdicts on {len(claims)} claims of textbooks: {_list(counts)}.{refuted}" if claims else ""


def about(document: Json, study: Json) -> list[str]:
    """How the numbers were measured, and their limits; sentences without a full stop."""
    seeds, features = document["seeds"], document["features"]
    times = {name: run.get("share", 1) for name, run in study["runs"].items()}
    budget = document["budget_cpu_minutes"]
    grid = percent(study["trials"].get("grid", {}).get("share", 1))
    teacher = next(((n, r["init"]) for n, r in study["runs"].items() if r.get("init") in study["runs"]), None)
    parts = [
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({', '.join(map(str, seeds))}); every family was trained "
        f"for {number(60 * budget)} CPU seconds per seed, on one thread"
    ]
    if teacher:
        name, source = teacher
        parts[0] += f"; {name} spent {percent(times[source])} of them on the flow matching run that it starts from"
    if latents := document.get("latents"):
        parts[0] += f"; all of them learn the latents {latents['latents']}"
    n = "over the samples of one training" if len(seeds) == 1 else "over seeds (Student's t)"
    named = f"{features['name']}" + (f" ({percent(features['accuracy'])} accuracy)" if "accuracy" in features else "")
    return [
        parts[0],
        *_of_latents(document),
        f"Intervals are 95 % intervals {n}. With few seeds they are wide, and many claims remain undecided: use more "
        "--seeds to decide more claims",
        f"{document['samples']:,} samples are compared with {document['reference']['rows']:,} real rows of the "
        f"{document['reference']['split']} split, with the features {named}. {_distance(features)}",
        "The curves of quality against steps use fewer samples than the fd in the tables and are more biased: compare "
        "their points with each other, not with the tables",
        f"Modes are counted on points in the plane without labels, after trainings with {grid} of the budget",
        *_more_trials(study),
        "The sensitivity to the learning rate is measured with one training at a third and one at three times the "
        "preset's rate: its interval is over samples",
        f"Times in milliseconds hold for {document['machine']}, with two stages running at the same time"
        f"{_busy(document)}",
        "The presets influence the results as much as the families: a claim refuted here is refuted for this data, "
        "budget and preset",
        f"{number(document['cost_hours']['training_cpu'])} CPU hours of training, "
        f"{number(document['cost_hours']['measuring'])} hours of measuring",
    ]  # fmt: skip


def _busy(document: Json) -> str:
    """A warning about times, if more ran on the machine than the stages themselves."""
    load = document.get("load")
    if not load or load["median"] <= load["cores"] + 1.5:
        return ""
    return (
        f". Other programs kept it busy (load {load['median']:g} on {load['cores']} cores): the times are too long, by "
        "factors that differ between methods"
    )


def _of_latents(document: Json) -> list[str]:
    """What the runs on latents share, and what is not compared."""
    latents = document.get("latents")
    if not latents:
        return []
    limit = latents["limit"]
    return [
        f"The autoencoder was trained and the dataset encoded once, for all seeds: the intervals do not contain the "
        f"randomness of the autoencoder. Both took {number(latents['cpu_seconds'])} CPU seconds, which the training "
        "times to a given fd include",
        *([f"The reconstructions have an fd of {number(limit['value'])}: a perfect model of the latents has this fd"]
          if limit else []),
        "Likelihoods are not compared, because the density of latents is not that of pictures",
    ]  # fmt: skip


def _more_trials(study: Json) -> list[str]:
    """The limits of trials that are optional in a study."""
    trials, parts = study["trials"], []
    if "stacked" in trials:
        share = percent(trials["stacked"].get("share", 1))
        parts.append(f"Modes of stacked digits are counted for one training with {share} of the budget: the interval "
                     "is over samples and holds for this number of samples")  # fmt: skip
    if "half" in trials and study.get("target"):
        parts.append("The training time to a given fd is that of complete trainings with a quarter, half and all of "
                     "the budget, one each; nothing between them was tried")  # fmt: skip
    return parts


def _distance(features: Json) -> str:
    if features.get("distance") == "FID":
        return "The features are those of an Inception network, so the distance is FID at this number of samples"
    return "The distance is not FID: do not compare it with published numbers"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
