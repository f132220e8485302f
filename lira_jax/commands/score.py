"""Stage 2 on the command line: score every example under every shadow model, and on request ask
models for labels, or about inputs that no model trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lira_jax import config
from lira_jax.commands import trusting
from lira_jax.commands.parsing import Switch, parse, parse_ahead, refuse_small_address_space
from lira_jax.config import Experiment, LabelOnlyConfig, ScoreConfig, TrustConfig
from lira_jax.run import run_dir
from lira_jax.storage import as_path


@dataclass(frozen=True)
class Arguments:
    """The arguments of this command.

    Attributes:
        run: Run directory whose models are trained; scoring left unfinished is continued.
        ask: Also ask the models for labels alone, as [label_only] says, for the label-only
            attacks. Scores come first where they are missing. A shard is then a share of the
            examples, too.
        trust_asked: Also predict inputs from elsewhere, as [trust] says, with and without a Laplace
            approximation. Scores come first where they are missing.
        shard: Share of the models to score, as for train.py.
        repair: Score models anew whose scores are damaged.
        trust_code: Import and run code that the run's own config.toml names (data.name,
            network.arch, trust.data_sets), as you have read it or made the run.
    """

    run: str
    ask: Annotated[Switch, tyro.conf.arg(name="label_only")] = False
    trust_asked: Annotated[Switch, tyro.conf.arg(name="trust")] = False
    score: ScoreConfig = field(default_factory=ScoreConfig)
    label_only: LabelOnlyConfig = field(default_factory=LabelOnlyConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    shard: str = "0/1"
    repair: Switch = False
    trust_code: Switch = False


def main(arguments: Sequence[str]) -> None:
    ahead = parse_ahead(Arguments(""), arguments)
    run, own = ahead.run, Experiment(trust=ahead.trust)
    experiment = run_dir.read_config(as_path(run)) if run else Experiment()
    default = Arguments(
        tyro.MISSING,
        score=experiment.score,
        label_only=experiment.label_only,
        trust=experiment.trust,
    )
    text = "Score every example under every shadow model of a run."
    parsed = parse(default, text, arguments)
    experiment = config.check(
        dataclasses.replace(
            experiment, score=parsed.score, label_only=parsed.label_only, trust=parsed.trust
        )
    )
    fields = ["data.name", "network.arch", *(["trust.data_sets"] if parsed.trust_asked else [])]
    trusting.check(as_path(parsed.run), experiment, own, parsed.trust_code, fields)

    refuse_small_address_space()
    from lira_jax import ensemble, scoring  # JAX starts slowly; --help need not wait for it
    from lira_jax.label_only import asking
    from lira_jax.trust import predicting

    shard = ensemble.set_up(parsed.shard)
    stages = [(parsed.ask, asking.query), (parsed.trust_asked, predicting.score)]
    for stage in [stage for asked, stage in stages if asked] or [scoring.score]:
        stage(experiment, as_path(parsed.run), shard=shard, repair=parsed.repair)
