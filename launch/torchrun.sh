#!/usr/bin/env bash
# Train on all GPUs of one machine, or of several: copy, edit the top, run on every machine.
set -euo pipefail

TRAIN_DATA=${TRAIN_DATA:-shards/train}      # folder or s3://bucket/prefix
VAL_DATA=${VAL_DATA-shards/valid}           # the same; empty: no validation
NAME=${NAME:-pmc-clip}                      # the run's folder is runs/$NAME
PROCESSES=${PROCESSES:-}                    # on this machine; one for each GPU unless given
NODES=${NODES:-1}                           # machines
RENDEZVOUS=${RENDEZVOUS:-localhost:29500}   # host:port of the first machine, the same on all of them
RESTARTS=${RESTARTS:-3}                     # how often processes that crash are started again

if [ "$NODES" -gt 1 ] && [ "${RENDEZVOUS%%:*}" = localhost ]; then
    echo "NODES=$NODES: set RENDEZVOUS=HOST:29500, where HOST is the first machine as the others reach it" >&2
    exit 2
fi
if [ -z "$PROCESSES" ]; then
    PROCESSES=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
    [ "$PROCESSES" -gt 0 ] || PROCESSES=1   # no GPU: one process on the CPU
fi

# "--resume auto" makes a fresh start and a restart the same command. "--" keeps torchrun from taking flags of ours for
# abbreviations of its own (--logs, say). What this script is given is passed on: ./torchrun.sh --epochs 30 --batch-size 128
exec torchrun --nnodes "$NODES" --nproc_per_node "$PROCESSES" --max_restarts "$RESTARTS" \
    --rdzv_backend c10d --rdzv_endpoint "$RENDEZVOUS" --rdzv_id "$NAME" \
    -m -- pipeline.train \
    --train-data "$TRAIN_DATA" ${VAL_DATA:+--val-data "$VAL_DATA"} --name "$NAME" --resume auto --mlm "$@"
