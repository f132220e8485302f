#!/bin/bash
#
# Train and score a run on a Cloud TPU slice of several hosts, one process per host. For a TPU of
# one host none of this is needed: log in and run train.py and score.py.
#
#   edit       the five lines below. Every host needs a clone of the repository in $folder of its
#              home folder, installed into .venv with the extras tpu and gcs. The run directory lies
#              in a bucket, or on a network file system that every host has mounted.
#   submit     from your own machine, with gcloud set up:
#                  launch/tpu_pod.sh train       returns at once; the work goes on without you
#                  launch/tpu_pod.sh score       when all hosts have trained
#   progress   launch/tpu_pod.sh progress       the last lines of every host's log
#   stop       launch/tpu_pod.sh stop           SIGTERM: each host saves and ends
#   continue   the same command again, after preemption on a new slice of any size
#   attack     anywhere: python attack.py --run gs://my-bucket/runs/cifar10_wrn28_2
#
# docs/cluster.md explains every step. Not tried on a TPU yet.

set -euo pipefail

tpu=my-tpu
zone=europe-west4-b
folder=lira_jax
config=configs/cifar10_wrn28_2.toml
run=gs://my-bucket/runs/cifar10_wrn28_2

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
        --command="cd $folder || exit; $1"
}

# Start a stage on every host. setsid cuts it off from the connection; no shell stands between it
# and `stop`. All hosts have to begin within five minutes of each other: jax.distributed waits no
# longer. That is why scoring is a command of its own.
start() {
    local words
    printf -v words '%q ' .venv/bin/python "$@" --shard distributed
    on_all_hosts "if kill -0 \$(cat lira_jax.pid 2> /dev/null) 2> /dev/null; then
            echo 'at work already: see launch/tpu_pod.sh progress' >&2
            exit 1
        fi
        setsid $words >> lira_jax.log 2>&1 < /dev/null &
        echo \$! > lira_jax.pid"
}

case ${1:-} in
    train) start train.py "$config" --run "$run" ;;
    score) start score.py --run "$run" ;;
    progress) on_all_hosts "tail -n 2 lira_jax.log" ;;
    stop) on_all_hosts "kill -TERM \$(cat lira_jax.pid)" ;;
    *)
        echo "usage: launch/tpu_pod.sh train | score | progress | stop" >&2
        exit 2
        ;;
esac
