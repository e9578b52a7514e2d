"""What runs on the pretended device: families, data, nets and options."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from support.small import FACTS, family, learns

from genflow import families, nets
from genflow.errors import GenflowError
from genflow.families.base import Family
from genflow.specs import DataSpec

VARIANTS: dict[str, list[dict[str, Any]]] = {  # options that change the loss, the net's inputs or the likelihood
    "ddpm": [
        {}, {"schedule": "linear", "predict": "eps"}, {"schedule": "edm"}, {"weight": "min_snr", "predict": "x"},
        {"bound": "ode"}, {"predict": "velocity", "shift": 2.0},
    ],
    "flow_matching": [{}, {"density": "u_shaped", "at_noise": 0.2}],
    "meanflow": [{}, {"derivative": "jvp"}, {"mode": "distill"}],
    "consistency": [{}, {"mode": "distill"}, {"mode": "distill", "guidance": 2.0}],
    "gan": [{}, {"penalty": "difference"}, {"penalty_every": 4}, {"game": "minimax"}, {"game": "non_saturating"}],
    "vae": [{}, {"prior": "flow"}, {"prior": "normal", "bound": "iwae"}, {"scale": "pixel", "decoder": "gaussian"}],
    "autoencoder": [{}],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A family, its data and its net.

    Args:
        kind: of family.
        data: a key of `support.small.FACTS`.
        net: a kind of net.
        options: of the family.
    """

    kind: str
    data: str
    net: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique, such as `ddpm-grey-unet-schedule=edm`."""
        return "-".join([self.kind, self.data, self.net, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def facts(self) -> DataSpec:
        """Of the data."""
        return FACTS[self.data]

    def made(self) -> Family:
        """The family with its initial weights, on the CPU."""
        model = family(self.kind, self.facts, self.net, family=self.options)
        if families.family_class(self.kind).teacher == "required" or self.options.get("mode") == "distill":
            model.init_from(family("flow_matching", self.facts, self.net))
        return model


def quick() -> list[Case]:
    """One case for each family, and for each kind of code that another case does not reach."""
    return [
        *DEFAULTS.values(),
        Case("ddpm", "grey", "unet", {"schedule": "edm"}),
        Case("consistency", "grey", "unet", {"mode": "distill"}),
        Case("flow_matching", "points", default("flow_matching", "points")),
        Case("flow_matching", "grey", "dit"),
        Case("meanflow", "latents", "dit", {"derivative": "jvp"}),
        Case("meanflow", "grey", "unet", {"mode": "distill"}),
        Case("flow_matching", "captioned", "mmdit"),
        Case("vae", "grey", default("vae", "grey"), {"prior": "flow"}),
    ]


def every() -> Iterator[Case]:
    """Every family with all data, nets and variants that fit; the variants only with the default net."""
    for kind in families.kinds():
        for data in FACTS:
            if not learns(kind, FACTS[data]):
                continue
            for net in nets.kinds():
                for options in VARIANTS.get(kind, [{}]):
                    if options and (net != default(kind, data) or data in ("colour", "latents")):
                        continue
                    if (case := Case(kind, data, net, options)).name in QUICK:
                        continue
                    try:
                        case.made()
                    except GenflowError:  # this net does not fit these data
                        continue
                    yield case


def default(kind: str, data: str) -> str:
    """The default net of a family."""
    return families.family_class(kind).default_net_for(FACTS[data])["kind"]


DEFAULTS = {(case := Case(kind, "grey", default(kind, "grey"))).name: case for kind in families.kinds()}
QUICK = {case.name: case for case in quick()}
