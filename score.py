"""Stage 2 on the command line: score every example under every shadow model, and on request ask
models for labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lira_jax import config, run_dir
from lira_jax.command_line import parse, run_stage, value_of, with_value
from lira_jax.config import LabelOnlyConfig, ScoreConfig
from lira_jax.storage import as_path


@dataclass(frozen=True)
class Arguments:
    """The arguments of this script.

    Attributes:
        run: Run directory whose models are trained; scoring left unfinished is continued.
        ask: Also ask the models for labels alone, as [label_only] says, for the label-only
            attacks; --label-only is short for --label-only True. Scores come first where they
            are missing. A shard is then a share of the examples, too.
        shard: Share of the models to score, as for train.py.
        repair: Score models anew whose scores are damaged.
    """

    run: str
    ask: Annotated[bool, tyro.conf.arg(name="label_only")] = False
    score: ScoreConfig = field(default_factory=ScoreConfig)
    label_only: LabelOnlyConfig = field(default_factory=LabelOnlyConfig)
    shard: str = "0/1"
    repair: bool = False


def main(arguments: Sequence[str]) -> None:
    for flag in ("--label-only", "--label_only"):
        arguments = with_value(flag, arguments)
    run = value_of("--run", arguments)
    experiment = run_dir.read_config(as_path(run)) if run is not None else config.Experiment()
    default = Arguments(tyro.MISSING, score=experiment.score, label_only=experiment.label_only)
    text = "Score every example under every shadow model of a run."
    parsed = parse(Arguments, default, text, arguments)

    from lira_jax import ensemble, scoring  # JAX starts slowly; --help need not wait for it
    from lira_jax.label_only import querying

    shard = ensemble.set_up(parsed.shard)
    experiment = dataclasses.replace(experiment, score=parsed.score, label_only=parsed.label_only)
    stage = querying.query if parsed.ask else scoring.score
    stage(config.check(experiment), as_path(parsed.run), shard=shard, repair=parsed.repair)


if __name__ == "__main__":
    run_stage(main)
