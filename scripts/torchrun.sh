#!/usr/bin/env bash
# A run on several machines without a scheduler; the same line on each of them, started within ten minutes:
#
#   FIRST=node1 NODES=2 RANKS_PER_NODE=8 scripts/torchrun.sh imagenet-vit-b data=DIR --out RUN
#
# FIRST is the name or address of one of the machines. DIR holds the same images everywhere; RUN is written by rank 0
# alone, so after a restart it must be where rank 0 then is: a shared folder. Where it is not shared, the other machines
# have RUN/.cache, decoded images, until the run is done.
#
# torchrun starts all ranks again RESTARTS times (3), whatever ended them: it cannot tell a rank that was killed from bad
# input (2), a divergence (3) or damaged checkpoints (4), which end in the same way each time.
set -eu
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${RANKS_PER_NODE:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "${FIRST:-localhost}:${PORT:-29500}" --rdzv-id "${JOB:-cjepa}" \
  --max-restarts "${RESTARTS:-3}" --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 240 \
  -m cjepa pretrain "$@"
