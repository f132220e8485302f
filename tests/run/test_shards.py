from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lira_jax.errors import InputError
from lira_jax.run.shards import Shard, parse


@given(st.integers(0, 300), st.integers(1, 40))
def test_shares_are_all_models_once_and_differ_by_at_most_one(models, count):
    shares = [Shard(index, count).models(models) for index in range(count)]
    assert [n for share in shares for n in share] == list(range(models))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard()), ("2/3", Shard(2, 3))])
def test_a_share_is_named_by_index_and_count(text, shard):
    assert parse(text, {}) == shard
    assert str(shard) == text


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "1/0", "a/b", "0/1/2", "", "0 / 2", "AUTO"])
def test_anything_else_is_refused(text):
    with pytest.raises(InputError, match=r"--shard .*: give i/n with 0 ≤ i < n"):
        parse(text, {})


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_COUNT": "8",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "7",
    "SLURM_ARRAY_TASK_STEP": "1",
}
STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (ARRAY, Shard(5, 8)),
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}, Shard(4, 8)),
        (
            ARRAY | {"SLURM_ARRAY_TASK_STEP": "5", "SLURM_ARRAY_TASK_COUNT": "2"},
            Shard(1, 2),
        ),
        (STEP, Shard(1, 4)),
        (ARRAY | STEP, Shard(21, 32)),
        # The batch script of a job of four tasks, outside srun: alone in its array task.
        (ARRAY | {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Shard(5, 8)),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "4"}, Shard(2, 4)),
    ],
)
def test_auto_reads_the_place_among_a_clusters_processes(environment, shard):
    assert parse("auto", environment) == shard


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "not that of a Slurm array task"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "not that of a Slurm array task"),
        ({"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETIONS = ''"),
        ({"JOB_COMPLETION_INDEX": "two", "JOB_COMPLETIONS": "4"}, "JOB_COMPLETION_INDEX = 'two'"),
        ({"JOB_COMPLETION_INDEX": "4", "JOB_COMPLETIONS": "4"}, "process 4 of 4"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "9"}, "process 9 of 8"),
        (
            ARRAY
            | {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}
            | {"SLURM_ARRAY_TASK_ID": "3"},
            "2 array tasks numbered 3 to 7 have gaps",
        ),
    ],
)
def test_auto_refuses_an_environment_it_cannot_read(environment, said):
    with pytest.raises(InputError, match=r"--shard auto: ") as caught:
        parse("auto", environment)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
