#!/usr/bin/env bash
set -euo pipefail
# N processes on this machine, one device each; from any directory:
#   launch/multiprocess.sh 2 --config=configs/digits.py --workdir=runs/two
# Process 0 writes to stdout, the others to stderr; SIGTERM and SIGINT reach
# all. Ends with 0 if all do, else like the first that doesn't; the others,
# which may wait for it for ever, are then killed after GRACE seconds.
if ! [[ ${1-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUMBER_OF_PROCESSES ARGUMENTS..." >&2
  exit 2
fi
n=$1 pids=() code=0 deadline='' stop=''
shift
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export XLA_FLAGS="${XLA_FLAGS-} --xla_force_host_platform_device_count=1"
socket='import socket; print(socket.create_server(("", 0)).getsockname()[1])'
port=$(python -W ignore -c "$socket")
trap 'stop=yes' TERM INT
trap 'kill -KILL "${pids[@]}" 2>&- || true' EXIT
for ((i = 0; i < n; i++)); do
  ((i)) && out=2 || out=1
  CUDA_VISIBLE_DEVICES=$i python -m cbkd_jax.train "$@" >&"$out" \
    --coordinator="localhost:$port" --processes="$n" --process_id="$i" &
  pids[i]=$!
done
while ((${#pids[@]} && SECONDS < ${deadline:-SECONDS + 1})); do
  sleep 0.2 || true
  # TERM for both: Bash starts children deaf to INT until they ask for it.
  if [[ $stop ]]; then kill -TERM "${pids[@]}" 2>&- || true; fi
  stop=''
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>&- && continue
    wait "${pids[i]}" && ended=0 || ended=$?
    unset "pids[i]"
    ((code || !ended)) || deadline=$((SECONDS + ${GRACE:-60})) code=$ended
  done
done
exit "$code"
