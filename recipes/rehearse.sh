#!/usr/bin/env bash
# Two processes on a CPU: a rehearsal of what a cluster does, on a laptop.
set -euo pipefail
export OMP_NUM_THREADS=1          # or each process takes all cores
export CUDA_VISIBLE_DEVICES=      # also where there is a GPU
export ACCELERATE_USE_CPU=1       # without it, accelerate takes each process for the only one
torchrun --standalone --nproc-per-node 2 \
    -m omni_lite.cli train --preset nano --from shipped --budget 2m --parallel "${1:-ddp}" --out runs/rehearse --no-report
