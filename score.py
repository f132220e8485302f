"""Stage 2 on the command line: score every example under every shadow model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro

from lira_jax import config, run_dir
from lira_jax.command_line import parse, run_stage, value_of
from lira_jax.config import ScoreConfig
from lira_jax.storage import as_path


@dataclass(frozen=True)
class Arguments:
    """The arguments of this script.

    Attributes:
        run: Run directory whose models are trained; scoring left unfinished is continued.
        shard: Share of the models to score, as for train.py.
        repair: Score models anew whose scores are damaged.
    """

    run: str
    score: ScoreConfig = field(default_factory=ScoreConfig)
    shard: str = "0/1"
    repair: bool = False


def main(arguments: Sequence[str]) -> None:
    run = value_of("--run", arguments)
    experiment = run_dir.read_config(as_path(run)) if run is not None else config.Experiment()
    default = Arguments(tyro.MISSING, experiment.score)
    text = "Score every example under every shadow model of a run."
    parsed = parse(Arguments, default, text, arguments)

    from lira_jax import ensemble, scoring  # JAX starts slowly; --help need not wait for it

    shard = ensemble.set_up(parsed.shard)
    experiment = dataclasses.replace(experiment, score=parsed.score)
    scoring.score(config.check(experiment), as_path(parsed.run), shard=shard, repair=parsed.repair)


if __name__ == "__main__":
    run_stage(main)
