"""Stage 1 on the command line: train the shadow models of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lira_jax import config, config_file
from lira_jax.commands.parsing import Switch, parse, parse_ahead
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.run import run_dir
from lira_jax.storage import as_path


@dataclass(frozen=True)
class Arguments:
    """The arguments of this command.

    Attributes:
        run: Run directory, made if missing; an unfinished run is continued.
        config: The experiment, such as configs/digits.toml; may be left out to continue a run.
        shard: Share of the models to train: `i/n`, counted from 0; `auto` reads Slurm's and
            Kubernetes' variables; `distributed` starts jax.distributed.
        repair: Train models with damaged checkpoints again, and write damaged masks anew.
    """

    run: str
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    config: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="CONFIG.toml")] = (
        None
    )
    shard: str = "0/1"
    repair: Switch = False


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        raise InputError("no experiment: python train.py configs/digits.toml --run runs/digits")
    ahead = parse_ahead(Arguments("", Experiment()), arguments)
    if ahead.config is not None:
        experiment = config_file.load(ahead.config)
    else:
        experiment = run_dir.read_config(as_path(ahead.run)) if ahead.run else Experiment()
    default = Arguments(tyro.MISSING, experiment)
    parsed = parse(default, "Train the shadow models of an experiment.", arguments)

    from lira_jax import ensemble, training  # JAX starts slowly; --help need not wait for it

    shard = ensemble.set_up(parsed.shard)
    training.train(
        config.check(parsed.experiment), as_path(parsed.run), shard=shard, repair=parsed.repair
    )
