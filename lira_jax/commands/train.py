"""Stage 1 on the command line: train the shadow models of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lira_jax import config, config_file, foreign
from lira_jax.commands import trusting
from lira_jax.commands.parsing import Switch, parse, parse_ahead, refuse_small_address_space
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.run import run_dir
from lira_jax.storage import as_path

_CODE = ("data.name", "network.arch")


@dataclass(frozen=True)
class Arguments:
    """The arguments of this command.

    Attributes:
        run: Run directory, made if missing; an unfinished run is continued.
        config: The experiment, such as configs/digits.toml; may be left out to continue a run.
        shard: Share of the models to train: `i/n`, counted from 0; `auto` reads Slurm's and
            Kubernetes' variables; `distributed` starts jax.distributed.
        repair: Train models with damaged checkpoints again, and write damaged masks anew.
        trust_code: Import and run code that a run's own config.toml names (data.name,
            network.arch), as you have read it or made the run: to continue a run without its
            CONFIG.toml, or for defence.transfer_from.
    """

    run: str
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    config: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="CONFIG.toml")] = (
        None
    )
    shard: str = "0/1"
    repair: Switch = False
    trust_code: Switch = False


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
    experiment = config.check(parsed.experiment)
    # A CONFIG.toml that the user names is the user's own, as the rest of the command line.
    own = ahead.experiment if ahead.config is None else experiment
    trusting.check(as_path(parsed.run), experiment, own, parsed.trust_code, _CODE)
    where = f'defence.transfer_from = "{experiment.defence.transfer_from}"'
    with foreign.reading(where, "give a run directory", "no usable path"):
        source = Path(experiment.defence.transfer_from).expanduser()
        is_run = (source / run_dir.CONFIG).is_file()
    if experiment.defence.transfer_from and is_run:
        trusting.check(source, run_dir.read_config(source), own, parsed.trust_code, _CODE)

    refuse_small_address_space()
    from lira_jax import ensemble, training  # JAX starts slowly; --help need not wait for it

    shard = ensemble.set_up(parsed.shard)
    training.train(experiment, as_path(parsed.run), shard=shard, repair=parsed.repair)
