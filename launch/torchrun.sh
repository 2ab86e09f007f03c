#!/usr/bin/env bash
# Train on all GPUs of one machine, or of several: copy, edit the top, run on every machine.
set -euo pipefail

TRAIN_DATA=${TRAIN_DATA:-shards/train}      # folder or s3://bucket/prefix
VAL_DATA=${VAL_DATA:-shards/valid}
NAME=${NAME:-pmc-clip}                      # the run's folder is runs/$NAME
PROCESSES=${PROCESSES:-}                      # on this machine; one for each GPU unless given
NODES=${NODES:-1}                           # machines
RENDEZVOUS=${RENDEZVOUS:-localhost:29500}   # host:port of the first machine

[ -n "$PROCESSES" ] || PROCESSES=$(nvidia-smi -L 2>/dev/null | wc -l)
[ "$PROCESSES" -gt 0 ] || PROCESSES=1

# "--resume auto" makes a fresh start and a restart the same command. "--" keeps torchrun from taking flags of ours for
# abbreviations of its own. Anything given to this script is passed on: ./torchrun.sh --epochs 30 --batch-size 128
exec torchrun --nnodes "$NODES" --nproc_per_node "$PROCESSES" \
    --rdzv_backend c10d --rdzv_endpoint "$RENDEZVOUS" --rdzv_id "$NAME" \
    -m -- pipeline.train \
    --train-data "$TRAIN_DATA" --val-data "$VAL_DATA" --name "$NAME" --resume auto --mlm "$@"
