#!/usr/bin/env bash
set -euo pipefail
# One process on this machine, over all its devices:
#   launch/local.sh --config=configs/cifar10_resnet56.py --workdir=runs/r56
cd "$(dirname "$0")/.."
exec python -m cbkd_jax.train "$@"
