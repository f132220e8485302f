"""Stage 3 on the command line: membership inference from saved scores. Needs no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lira_jax import attacking, config, run_dir, score_set
from lira_jax.attacking import Protocol
from lira_jax.command_line import parse, run_stage, value_of
from lira_jax.config import AttackConfig, Experiment
from lira_jax.errors import InputError
from lira_jax.storage import as_path


@dataclass(frozen=True)
class Arguments:
    """The arguments of this script.

    Attributes:
        run: Run directory whose models are scored.
        scores: Instead of --run: an .npz with scores [N, E] or [N, E, Q] and keep [N, E],
            optionally labels [E], logits [N, E, K] and block (models per block), made anywhere.
        out: Folder to write into; with --run the default is RUN/attack, or
            RUN/attack_reference_code.
        protocol: `leave-block-out`: every model is a target, against the models outside its
            block. `reference-code`: as the public LiRA code evaluates, the last model the only
            target.
    """

    run: str | None = None
    scores: Path | None = None
    out: str | None = None
    protocol: Protocol = "leave-block-out"
    attack: AttackConfig = field(default_factory=AttackConfig)


def main(arguments: Sequence[str]) -> None:
    run = value_of("--run", arguments)
    experiment = run_dir.read_config(as_path(run)) if run is not None else Experiment()
    text = "Attack the models of a run, or scores made elsewhere: who was in the training set?"
    parsed = parse(Arguments, Arguments(attack=experiment.attack), text, arguments)
    config.check(dataclasses.replace(experiment, attack=parsed.attack))
    if parsed.run is not None and parsed.scores is None:
        found = run_dir.read_score_set(as_path(parsed.run))
        name = "attack" if parsed.protocol == "leave-block-out" else "attack_reference_code"
        out = as_path(parsed.out) if parsed.out else as_path(parsed.run) / name
    elif parsed.scores is not None and parsed.run is None:
        if parsed.out is None:
            raise InputError(f"--scores {parsed.scores}: say where to write with --out DIR")
        found, out = score_set.read_npz(parsed.scores), as_path(parsed.out)
    else:
        raise InputError("give either --run DIR, or --scores FILE.npz and --out DIR")
    metrics = attacking.attack(found, parsed.attack, parsed.protocol, out)
    print(attacking.format_table(metrics, out))


if __name__ == "__main__":
    run_stage(main)
