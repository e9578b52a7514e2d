"""A search space is checked against the recipe's types, and an invalid one gives a one-line error."""

from collections.abc import Callable

import pytest

from genflow import build, families
from genflow.data.shards import Dataset
from genflow.errors import UsageError
from genflow.recipe.compose import compose
from genflow.recipe.schema import Recipe
from genflow.tuning import space
from genflow.tuning.space import Domain


@pytest.fixture
def domains(prepared: Callable[..., Dataset]) -> Callable[..., dict[str, Domain]]:
    """`domains({"train.lr": "log:1e-3:1"}, kind="gan")` as a space on small points."""
    facts = prepared("grid25", samples=500).facts

    def make(described: dict[str, object], kind: str = "flow_matching") -> dict[str, Domain]:
        recipe: Recipe = compose(kind, {"tune": {"space": described}})
        return space.space_of(recipe, build.resolve(recipe, facts), facts)

    return make


def test_a_range_takes_the_type_of_its_field(domains):
    """`log` gives integers for an integer key, and real numbers for a real one."""
    found = domains({"train.batch": "log:8:64", "train.lr": "log:1e-4:1e-1", "train.ema": "uniform:0.01:0.2"})
    assert found["train.batch"] == Domain("train.batch", 8, 64, log=True, integer=True)
    assert found["train.lr"] == Domain("train.lr", 1e-4, 1e-1, log=True)
    assert found["train.ema"] == Domain("train.ema", 0.01, 0.2)


def test_values_have_their_own_types(domains):
    """A choice may be of strings or numbers; a YAML list is a choice; a third number is how many values."""
    found = domains({"sample.sampler": "choice:heun,euler", "sample.steps": [4, 8], "train.lr": "log:0.01:1:3"})
    assert found["sample.sampler"].values == ("heun", "euler")
    assert found["sample.steps"].values == (4, 8)
    assert found["train.lr"].values == (0.01, 0.1, 1.0)


@pytest.mark.parametrize(
    ("key", "described", "says"),
    [
        ("train.lrr", "log:1e-4:1", "unknown key train.lrr (did you mean train.lr?)"),
        ("lr", "log:1e-4:1", "unknown key lr (did you mean train.lr?)"),
        ("trian.lr", "log:1e-4:1", "unknown key trian.lr (did you mean train.lr?)"),
        ("family.gama", "log:1e-4:1", "unknown key family.gama (did you mean family.gamma?)"),
        ("data.size", "int:4:8", "data.size cannot be searched over"),
        ("family.kind", "choice:vae,gan", "a search has one family"),
        ("train.lr", "lgo:1e-4:1", "'lgo:1e-4:1' is not a search space (did you mean log?)"),
        ("train.lr", "0.1", "'0.1' is not a search space"),
        ("train.lr", "log:0:1", "a logarithm needs ends above 0"),
        ("train.lr", "log:1:1e-4", "the lower end comes first"),
        ("train.lr", "log:a:1", "'a' is not a number"),
        ("train.lr", "log:nan:1", "'nan' is not a number"),
        ("train.lr", "log:1e-4", "does not have two ends"),
        ("train.lr", "uniform:0.1:20", "train.lr=20"),
        ("train.batch", "uniform:0.5:8", "takes integers, not 0.5"),
        ("train.optimizer", "log:1:2", "takes one of"),
        ("train.optimizer", "choice:muon,adam", "train.optimizer=adam"),
        ("train.compile", "uniform:0:1", "takes no number"),
        ("family.game", "choice:minimax,maximin", "family.game=maximin"),
        ("family.latent", "choice:a,2", "family.latent=a"),
        ("net.width", "choice:0,8", "net.width=0"),
        ("net.kind", "choice:mlp,mpl", "unknown net 'mpl' (did you mean mlp?)"),
        ("sample.temperature", "uniform:0.5:3", "sample.temperature=3"),
    ],
)
def test_an_invalid_space_is_rejected_in_one_line(domains, key, described, says):
    """The message has the key, the fault, and the nearest valid name."""
    with pytest.raises(UsageError) as caught:
        domains({key: described}, kind="gan")
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_the_pairs_of_the_command_line_are_checked():
    """A pair needs both sides, and each key is given once."""
    assert space.parse_pairs(["train.lr=log:1:2"]) == {"train.lr": "log:1:2"}
    for pairs, says in [(["train.lr"], "not of the form"), (["train.lr="], "not of the form"),
                        (["train.lr=log:1:2", "train.lr=log:1:3"], "given twice")]:  # fmt: skip
        with pytest.raises(UsageError, match=says):
            space.parse_pairs(pairs)


@pytest.mark.parametrize("kind", [kind for kind in families.kinds() if kind != "consistency"])
def test_every_family_has_a_space_that_its_recipe_accepts(prepared, kind):
    """It passes the checks, has the learning rate and at least two more keys, and contains the preset's rate."""
    pictures_only = families.family_class(kind).is_autoencoder
    facts = prepared("digits" if pictures_only else "grid25", samples=500).facts
    recipe = compose(kind)
    resolved = build.resolve(recipe, facts)
    found = space.space_of(recipe, resolved, facts)
    assert found["train.lr"].contains(resolved.train.lr)
    assert len(found) > 2


def test_without_a_space_the_learning_rate_is_searched(prepared):
    """A recipe without a space is tuned over its learning rate, by a factor of ten to either side."""
    facts = prepared("grid25", samples=500).facts
    recipe = compose("flow_matching", {"tune": {"space": {}}})
    found = space.space_of(recipe, build.resolve(recipe, facts), facts)
    assert found == {"train.lr": Domain("train.lr", 0.002, 0.2, log=True)}
