#!/usr/bin/env bash
# The same through accelerate's launcher. It only starts processes here: --parallel says what they do.
set -euo pipefail
accelerate launch --config_file recipes/accelerate.yaml \
    -m omni_lite.cli train --preset nano --budget 15m --parallel ddp --precision bf16 --out runs/accelerate
