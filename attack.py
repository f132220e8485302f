"""Stage 3 on the command line: membership inference from saved scores. Needs no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lira_jax import attacking, config, public_layout, score_set
from lira_jax.analysis import analyse, target
from lira_jax.analysis.analyse import About
from lira_jax.attacking import Protocol
from lira_jax.commands.parsing import parse, run_stage, value_of, with_value
from lira_jax.config import AttackConfig, Experiment
from lira_jax.errors import InputError
from lira_jax.label_only import answers
from lira_jax.report import compare, terminal
from lira_jax.run import run_dir
from lira_jax.run.storage import as_path
from lira_jax.trust import outputs

TEXT = (
    "Attack the models of a run, or scores made elsewhere: who was in the training set? "
    "`attack.py compare RUN RUN … --out DIR` puts attacked runs side by side."
)


@dataclass(frozen=True)
class Arguments:
    """The arguments of this script.

    Attributes:
        run: Run directory whose models are scored.
        scores: Instead of --run: an .npz with scores [N, E] or [N, E, Q] and keep [N, E],
            optionally labels [E], logits [N, E, K], merlin [N, E], gradient_norm [N, E],
            canary [E] and block (models per block), made anywhere; or a folder of the public LiRA
            code, with experiment-*/keep.npy and scores/.
        target: A model of your own to attack, all others being its shadow models: an .npz with
            its scores [E] or [E, Q] over the same examples and views, and its keep [E] if known.
        out: Folder to write into; with --run the default is RUN/attack, RUN/attack_reference_code
            or RUN/target_NAME.
        protocol: `leave-block-out`: every model is a target, against the models outside its
            block. `reference-code`: as the public LiRA code evaluates, the last model the only
            target.
        label_only: Insist on label-only attacks, which are run wherever `score.py --label-only` has
            asked the models. The flag needs no value.
        null_check: Also send scores without any leakage through every attack, to see that each
            then guesses; the exit code is 1 if one does not.
    """

    run: str | None = None
    scores: Path | None = None
    target: Path | None = None
    out: str | None = None
    protocol: Protocol = "leave-block-out"
    label_only: bool = False
    null_check: bool = False
    attack: AttackConfig = field(default_factory=AttackConfig)


@dataclass(frozen=True)
class CompareArguments:
    """The arguments of `attack.py compare`.

    Attributes:
        runs: Attacked runs, or folders that attack.py wrote into.
        out: Folder to write into.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: str


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["compare"]:
        text = (
            "Put the results of several attacked runs side by side, in one table and two figures."
        )
        chosen = parse(CompareArguments, None, text, arguments[1:])
        print(compare.compare([as_path(run) for run in chosen.runs], as_path(chosen.out)))
        return
    for flag in ("--label-only", "--label_only"):
        arguments = with_value(flag, arguments)
    run = value_of("--run", arguments)
    experiment = run_dir.read_config(as_path(run)) if run is not None else Experiment()
    parsed = parse(Arguments, Arguments(attack=experiment.attack), TEXT, arguments)
    config.check(dataclasses.replace(experiment, attack=parsed.attack))
    if (parsed.run is None) == (parsed.scores is None):
        raise InputError("give either --run DIR, or --scores FILE.npz and --out DIR")
    if parsed.scores is not None and parsed.out is None:
        raise InputError(f"--scores {parsed.scores}: say where to write with --out DIR")
    if parsed.target is not None and parsed.protocol != "leave-block-out":
        raise InputError("--target: goes with --protocol leave-block-out; leave --protocol out")
    if parsed.protocol == "reference-code" and (parsed.null_check or parsed.attack.extra):
        raise InputError(
            "--protocol reference-code: has its own attacks alone; leave --null_check and "
            "--attack.extra out"
        )
    if parsed.target is not None and parsed.null_check:
        raise InputError("--null_check: is of the run's own attacks; leave --target out")
    if parsed.label_only and (
        parsed.run is None or parsed.target is not None or parsed.protocol != "leave-block-out"
    ):
        raise InputError(
            "--label-only: is of a run's own models by --protocol leave-block-out; give --run DIR, "
            "and leave --scores, --target and other protocols out"
        )
    out = as_path(parsed.out) if parsed.out else as_path(str(parsed.run)) / _folder(parsed)
    about, labels_of, elsewhere = About(), None, None
    if parsed.label_only:
        folder = as_path(str(parsed.run))
        if not (folder / answers.FOLDER / answers.MODELS).exists():
            raise _not_asked(folder)  # before the scores, which the same command makes
    if parsed.run is not None:
        found = run_dir.read_score_set(as_path(parsed.run))
        if parsed.target is None:
            if parsed.protocol == "leave-block-out":
                labels_of = answers.read(as_path(parsed.run), found)
                elsewhere = outputs.read(as_path(parsed.run), found)
            asked = dataclasses.replace(experiment, attack=parsed.attack)
            about = analyse.about_run(as_path(parsed.run), asked)
    elif public_layout.is_layout(Path(str(parsed.scores))):
        found = public_layout.read(Path(str(parsed.scores)))
    else:
        found = score_set.read_npz(Path(str(parsed.scores)))
    if parsed.label_only and labels_of is None:
        raise _not_asked(as_path(str(parsed.run)))
    if parsed.target is not None:
        audited = target.audit(
            found,
            target.read_target(parsed.target, found, parsed.attack.queries),
            parsed.attack,
            parsed.attack.fpr,
        )
        target.write(audited, out)
        print(target.summary(audited))
        print(f"Written to {out}: target.csv, target.json")
        return
    metrics = attacking.attack(
        found, parsed.attack, parsed.protocol, out, about=about, check_null=parsed.null_check,
        labels_of=labels_of, elsewhere=elsewhere,
    )  # fmt: skip
    print(terminal.summary(metrics, out))
    if metrics["null_check"] and not metrics["null_check"]["ok"]:
        raise SystemExit(1)


def _not_asked(run: Path) -> InputError:
    return InputError(
        f"{run / answers.FOLDER}: the models have not been asked for labels, or not all of them "
        f"yet; run {answers.command(run)}"
    )


def _folder(parsed: Arguments) -> str:
    if parsed.target is not None:
        return f"target_{parsed.target.stem}"
    return "attack" if parsed.protocol == "leave-block-out" else "attack_reference_code"


if __name__ == "__main__":
    run_stage(main)
