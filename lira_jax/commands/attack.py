"""Stage 3 on the command line: membership inference from saved scores. Needs no JAX.

Three commands: `attack`, `target` for one model of the user's own, and `compare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tyro

from lira_jax import attacking, config, public_layout, score_set
from lira_jax.analysis import analyse
from lira_jax.analysis import target as target_audit
from lira_jax.analysis.analyse import About
from lira_jax.attacking import Protocol
from lira_jax.commands import trusting
from lira_jax.commands.entry import Ended
from lira_jax.commands.parsing import Switch, parse, parse_ahead
from lira_jax.config import AttackConfig, Experiment
from lira_jax.errors import InputError
from lira_jax.label_only import answers
from lira_jax.report import compare as comparison
from lira_jax.report import terminal
from lira_jax.run import run_dir, score_files
from lira_jax.run.result_folder import one_writer, replaced
from lira_jax.score_set import ScoreSet
from lira_jax.storage import as_path, is_remote
from lira_jax.trust import outputs


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores that a command takes, and where it writes.

    Attributes:
        run: Run directory whose models are scored.
        scores: Instead of --run: an .npz with scores [N, E] or [N, E, Q] and keep [N, E],
            optionally labels [E], logits [N, E, K], merlin [N, E], gradient_norm [N, E],
            canary [E] and block (models per block), made anywhere; or a folder of the public LiRA
            code, with experiment-*/keep.npy and scores/.
        out: Folder to write into; with --run the default is RUN/attack, RUN/attack_reference_code
            or RUN/target_NAME.
    """

    run: str | None = None
    scores: Path | None = None
    out: str | None = None
    attack: AttackConfig = field(default_factory=AttackConfig)


@dataclass(frozen=True, kw_only=True)
class AttackArguments(Scores):
    """The arguments of `attack`.

    Attributes:
        protocol: `leave-block-out`: every model is a target, against the models outside its
            block. `reference-code`: as the public LiRA code evaluates, the last model the only
            target.
        label_only: Insist on label-only attacks, which are run wherever `score.py --label-only` has
            asked the models.
        trust_code: Import and run code that the run's own config.toml names (attack.extra,
            data.name), as you have read it or made the run.
        null_check: Also send scores without any leakage through every attack, to see that each
            then guesses; the exit code is 1 if one does not.
    """

    protocol: Protocol = "leave-block-out"
    label_only: Switch = False
    trust_code: Switch = False
    null_check: Switch = False


@dataclass(frozen=True, kw_only=True)
class TargetArguments(Scores):
    """The arguments of `target`.

    Attributes:
        target: A model of your own to attack, all others being its shadow models: an .npz with
            its scores [E] or [E, Q] over the same examples and views, and its keep [E] if known.
    """

    target: Path


@dataclass(frozen=True)
class CompareArguments:
    """The arguments of `compare`.

    Attributes:
        runs: Attacked runs, or folders that attack.py wrote into.
        out: Folder to write into.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    out: str


S = TypeVar("S", bound=Scores)


def main(arguments: Sequence[str]) -> None:
    """`attack.py`: `compare` by its first word, `target` by the flag of that name, or `attack`."""
    if arguments[:1] == ["compare"]:
        compare(arguments[1:])
    elif any(word.partition("=")[0] == "--target" for word in arguments):
        target(arguments)
    else:
        attack(arguments)


def attack(arguments: Sequence[str]) -> None:
    text = (
        "Attack the models of a run, or scores made elsewhere: who was in the training set? "
        "`attack.py --run DIR --target FILE.npz` asks it of a model of your own, "
        "`attack.py compare RUN RUN … --out DIR` puts attacked runs side by side."
    )
    parsed, experiment, own = _parse(AttackArguments(), arguments, text)
    all_targets = parsed.protocol == "leave-block-out"
    if not all_targets and (parsed.null_check or parsed.attack.extra):
        raise InputError(
            "--protocol reference-code: this protocol has its own attacks; leave --null_check and "
            "--attack.extra out"
        )
    run = None if parsed.run is None else as_path(parsed.run)
    if parsed.label_only:
        if run is None or not all_targets:
            raise InputError(
                "--label-only: these attacks need a run and --protocol leave-block-out; give --run "
                "DIR, and leave --scores and other protocols out"
            )
        if not (run / answers.FOLDER / answers.MODELS).exists():
            raise _not_asked(run)  # before the scores, which the same command makes
    if run is not None and all_targets:
        trusting.check(run, experiment, own, parsed.trust_code, ["attack.extra"])
    scores = _read_scores(parsed)
    about, labels_of, elsewhere = About(), None, None
    if run is not None:
        # The attacks need no images.
        code = trusting.untrusted(experiment, own, parsed.trust_code, ["data.name"])
        reasons = [
            f'{field} = "{name}" is code that the run names; to run it, give --trust-code True'
            for field, name in code.items()
        ]
        about = analyse.about_run(run, experiment, "".join(reasons))
        if all_targets:
            labels_of, elsewhere = answers.read(run, scores), outputs.read(run, scores)
        if parsed.label_only and labels_of is None:
            raise _not_asked(run)
    out = _out(parsed, "attack" if all_targets else "attack_reference_code")
    metrics = attacking.attack(
        scores, parsed.attack, parsed.protocol, out, about=about, check_null=parsed.null_check,
        labels_of=labels_of, elsewhere=elsewhere,
    )  # fmt: skip
    print(terminal.summary(metrics, out))
    if metrics["null_check"] and not metrics["null_check"]["ok"]:
        raise Ended(1)


def target(arguments: Sequence[str]) -> None:
    text = "Attack one model of your own, with the models of a run as its shadow models."
    parsed, _, _ = _parse(TargetArguments(target=Path()), arguments, text, target=tyro.MISSING)
    scores = _read_scores(parsed)
    model = target_audit.read_target(parsed.target, scores, parsed.attack.queries)
    out = _out(parsed, f"target_{parsed.target.stem}")
    audit = target_audit.audit(scores, model, parsed.attack, parsed.attack.fpr)
    with one_writer(out), replaced(out, ["target.json"]) as folder:
        target_audit.write(audit, folder)
    print(target_audit.summary(audit))
    print(f"Written to {out}: target.csv, target.json")


def compare(arguments: Sequence[str]) -> None:
    text = "Put the results of several attacked runs side by side, in one table and two figures."
    parsed = parse(CompareArguments(tyro.MISSING, tyro.MISSING), text, arguments)
    print(comparison.compare([as_path(run) for run in parsed.runs], as_path(parsed.out)))


def _parse(
    default: S, arguments: Sequence[str], text: str, **needed: Any
) -> tuple[S, Experiment, Experiment]:
    """The arguments, [attack] as the run's configuration has it where they say nothing; that
    configuration with [attack] as they say; and the same with nothing from the run."""
    ahead = parse_ahead(default, arguments)
    run, own = ahead.run, Experiment(attack=ahead.attack)
    experiment = run_dir.read_config(as_path(run)) if run else Experiment()
    default = dataclasses.replace(default, attack=experiment.attack, **needed)
    parsed = parse(default, text, arguments)
    if (parsed.run is None) == (parsed.scores is None):
        raise InputError("give either --run DIR, or --scores FILE.npz and --out DIR")
    if parsed.scores is not None and parsed.out is None:
        raise InputError(f"--scores {parsed.scores}: say where to write with --out DIR")
    return parsed, config.check(dataclasses.replace(experiment, attack=parsed.attack)), own


def _read_scores(parsed: Scores) -> ScoreSet:
    if parsed.scores is None:
        return score_files.read_score_set(as_path(str(parsed.run)))
    reader = public_layout.read if public_layout.is_layout(parsed.scores) else score_set.read_npz
    return reader(parsed.scores)


def _out(parsed: Scores, name: str) -> Path:
    """Where results go.

    Raises:
        InputError: into a run, where a link of its maker's would lead elsewhere.
    """
    if parsed.out:
        return as_path(parsed.out)
    out = as_path(str(parsed.run)) / name
    if not is_remote(out) and out.is_symlink():
        raise InputError(f"{out}: is a link; if you trust where it leads, give it with --out")
    return out


def _not_asked(run: Path) -> InputError:
    return InputError(
        f"{run / answers.FOLDER}: not all models have been asked for labels yet; "
        f"run {answers.command(run)}"
    )
