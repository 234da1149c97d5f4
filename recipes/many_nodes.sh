#!/usr/bin/env bash
# Run this on every node: NODES=4 HEAD=name-of-the-first-node bash recipes/many_nodes.sh
# The folder in --out, the cache and the repository must be the same for all nodes (a network file system).
set -euo pipefail
torchrun --nnodes "${NODES:?how many nodes}" --nproc-per-node "${GPUS:-8}" \
    --rdzv-id "${RUN:-omni-lite}" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?name of one node}:${PORT:-29500}" \
    --max-restarts 0 \
    -m omni_lite.cli train --preset nano --from shipped --budget 1h --parallel fsdp2 --precision bf16 --out runs/nodes
