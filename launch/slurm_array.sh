#!/bin/bash
#
# Train and score a run as a Slurm array: 8 tasks, one GPU each, each an eighth of the models.
# All tasks write into one run directory, which must lie on a file system that every node sees.
#
#   edit       the #SBATCH lines: number of tasks, partition, account, GPUs, cores, memory, time
#   submit     from the root of the repository, where .venv is (the first word after the script is
#              the experiment, the second the run directory, further ones go to train.py):
#                  sbatch launch/slurm_array.sh configs/cifar10_wrn28_2.toml runs/cifar10_wrn28_2
#   progress   squeue --me
#              tail -n 1 slurm-JOBID_*.out
#   continue   after preemption, a time limit or a crash: the same sbatch command, whole array
#   attack     needs no GPU, on any machine; or as a job that waits for the array:
#                  sbatch --dependency=afterok:JOBID --wrap \
#                      ".venv/bin/python attack.py --run runs/cifar10_wrn28_2"
#
# docs/cluster.md explains every step. Not tried on a real cluster yet.
#
#SBATCH --job-name=lira_jax
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
# Back into the queue after preemption or the failure of a node, with one log for all attempts.
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the time limit: save and stop. Slurm sends this to the step, not to this script;
# with B:TERM it would be the other way round and python would not hear of it.
#SBATCH --signal=TERM@60
##SBATCH --partition=gpu
##SBATCH --account=my-account

set -euo pipefail

usage="usage: sbatch launch/slurm_array.sh CONFIG.toml RUN [flags of train.py]"
config=${1:?$usage}
run=${2:?$usage}
shift 2

# srun makes python itself the process that Slurm signals: no shell stands between them. This script
# only has to outlive it: bash answers SIGTERM when the step has ended, and starts no other.
trap 'exit 143' TERM

stage() {
    # Since Slurm 22.05 srun has to be told the cores again.
    srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" .venv/bin/python "$@"
}

stage train.py "$config" --run "$run" --shard auto "$@"
stage score.py --run "$run" --shard auto
