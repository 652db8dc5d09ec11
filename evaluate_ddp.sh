#!/usr/bin/env bash
# ./evaluate_ddp.sh N CONFIG [--model_suffix S] [key=value ...]: evaluate with N processes on this
# machine, one for each GPU where there are GPUs.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 N CONFIG [key=value ...]" >&2; exit 2; }
n=$1
shift
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="$n" \
  "$(dirname "$0")/sslsv/bin/evaluate.py" "$@"
