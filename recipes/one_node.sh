#!/usr/bin/env bash
# All GPUs of this machine: copies of the model, gradients averaged.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
torchrun --standalone --nproc-per-node "$gpus" \
    -m omni_lite.cli train --preset nano --budget 15m --parallel ddp --precision bf16 --out runs/ddp

# Shards instead of copies: for a model that does not fit. FSDP2 leaves the codec whole, so start from a trained one.
torchrun --standalone --nproc-per-node "$gpus" \
    -m omni_lite.cli train --preset nano --from shipped --budget 15m --parallel fsdp2 --precision bf16 --checkpointing \
    --out runs/fsdp2
