"""Stage 3: every attack on one set of scores, judged, and what it found written to a folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from threadpoolctl import threadpool_limits

from lira_jax.analysis.analyse import About, analyse, analyse_as_reference_code
from lira_jax.config import AttackConfig
from lira_jax.label_only.answers import LabelAnswers
from lira_jax.report import files
from lira_jax.run.result_folder import one_writer
from lira_jax.score_set import ScoreSet
from lira_jax.trust.outputs import Outputs

Protocol = Literal["leave-block-out", "reference-code"]


def attack(
    score_set: ScoreSet,
    config: AttackConfig,
    protocol: Protocol,
    out: Path,
    progress: bool = True,
    about: About = About(),
    *,
    check_null: bool = False,
    labels_of: LabelAnswers | None = None,
    elsewhere: Outputs | None = None,
) -> dict[str, Any]:
    """Run every attack and write what came out (`files.py`).

    Nothing is written before all input is checked, and what an earlier attack wrote stays until all
    files of this one are there. The same input writes the same bytes.

    Args:
        score_set: scores and masks.
        config: views to use and the centre of references (the reference code's is the median).
        protocol: `leave-block-out` takes every model as target (leave-one-out where the masks form
            no blocks); `reference-code` evaluates as the public LiRA code does.
        out: folder to write into, made if missing.
        progress: show progress bars, if standard error is a terminal.
        about: for the report.
        check_null: also send scores without leakage through every attack.
        labels_of: what live models answered, for label-only attacks, by the protocol
            `leave-block-out` alone.
        elsewhere: what models predict on inputs that none trained on; likewise.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: arrays that no attack could use, masks that leave a target without references,
            more views asked for than there are, a user's attack that fails, an `out` that cannot
            be written, or that another process writes to.
    """
    with ExitStack() as until_all_is_written:

        def ready() -> None:
            until_all_is_written.enter_context(one_writer(out))

        # The cores are busy without: threads that wait for each other's parts of small products
        # took six times the time of judging an attack, on two cores beside other work.
        until_all_is_written.enter_context(threadpool_limits(1, "blas"))
        if protocol == "reference-code":
            findings = analyse_as_reference_code(
                score_set, config, about, ready=ready, progress=progress
            )
        else:
            findings = analyse(
                score_set, config, about, check_null=check_null, labels_of=labels_of,
                elsewhere=elsewhere, ready=ready, progress=progress,
            )  # fmt: skip
        files.write(findings, out)
    return dict(findings.metrics)
