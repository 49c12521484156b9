#!/usr/bin/env bash
set -euo pipefail
# One process on this machine, over all its devices; from any directory:
#   launch/local.sh --config=configs/cifar10_resnet56.py --workdir=runs/r56
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python -m cbkd_jax.train "$@"
