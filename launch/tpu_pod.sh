#!/usr/bin/env bash
set -euo pipefail
# All hosts of a TPU slice, which find each other; from any directory:
#   TPU=my-v5e ZONE=us-west4-a launch/tpu_pod.sh \
#     --config=configs/cifar10_resnet56.py --workdir=gs://my-bucket/runs/r56
# TPU, ZONE: as given to `gcloud compute tpus tpu-vm create`. The hosts share
# no disk, so the workdir is a bucket. The same command goes on with a run.
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
if [[ " $*" != *' --workdir=gs://'* ]]; then
  echo 'error: --workdir=gs://BUCKET/... is missing' >&2
  exit 2
fi
vm=(gcloud compute tpus tpu-vm)
where=(--zone="$ZONE" --worker=all)
root=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
tar -czf "$archive" -C "$root" cbkd_jax configs requirements.txt
"${vm[@]}" scp "$archive" "$TPU:cbkd_jax.tar.gz" "${where[@]}"
printf -v arguments ' %q' "$@"
"${vm[@]}" ssh "$TPU" "${where[@]}" --command="set -eu
mkdir -p ~/cbkd_jax && cd ~/cbkd_jax && tar -xzf ~/cbkd_jax.tar.gz
test -d ~/venv || python3.11 -m venv ~/venv
~/venv/bin/pip install --quiet 'jax[tpu]' gcsfs -r requirements.txt
exec ~/venv/bin/python -m cbkd_jax.train$arguments"
