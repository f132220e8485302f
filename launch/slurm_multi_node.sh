#!/bin/bash
#
# Train and score a run as one Slurm job on several whole nodes: one process per node, which uses
# all GPUs of its node. For clusters that give out whole nodes; launch/slurm_array.sh waits less.
# The run directory must lie on a file system that every node sees.
#
#   edit       the #SBATCH lines: nodes, GPUs per node, partition, account, cores, time
#   submit     from the root of the repository, where .venv is (the first word after the script is
#              the experiment, the second the run directory, further ones go to train.py):
#                  sbatch launch/slurm_multi_node.sh configs/cifar10_wrn28_2.toml \
#                      runs/cifar10_wrn28_2
#   progress   squeue --me
#              tail slurm-JOBID.out          each line begins with the number of its process
#   continue   after preemption, a time limit or a crash: the same sbatch command
#   attack     needs no GPU: .venv/bin/python attack.py --run runs/cifar10_wrn28_2
#
# docs/cluster.md explains every step. Not tried on a real cluster yet.
#
#SBATCH --job-name=lira_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
#SBATCH --time=04:00:00
# Back into the queue after preemption or the failure of a node, with one log for all attempts.
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the time limit: save and stop. Slurm sends this to the steps, not to this script;
# with B:TERM it would be the other way round and python would not hear of it.
#SBATCH --signal=TERM@60
##SBATCH --partition=gpu
##SBATCH --account=my-account

set -euo pipefail

usage="usage: sbatch launch/slurm_multi_node.sh CONFIG.toml RUN [flags of train.py]"
config=${1:?$usage}
run=${2:?$usage}
shift 2

# srun makes python itself the process that Slurm signals: no shell stands between them. This script
# only has to outlive it: bash answers SIGTERM when the step has ended, and starts no other.
trap 'exit 143' TERM

stage() {
    # Processes are independent: none is killed because another failed (--kill-on-bad-exit=0) or
    # finished earlier (--wait=0). Since Slurm 22.05 srun has to be told the cores again.
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=0 --label \
        .venv/bin/python "$@"
}

stage train.py "$config" --run "$run" --shard auto "$@"
stage score.py --run "$run" --shard auto
