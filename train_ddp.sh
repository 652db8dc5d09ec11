#!/usr/bin/env bash
# ./train_ddp.sh N CONFIG [key=value ...]: train with N processes on this machine, one for each GPU
# where there are GPUs. With MAX_RESTARTS=3 in the environment, a lost process starts all of them anew
# from the last checkpoint, three times at most.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 N CONFIG [key=value ...]" >&2; exit 2; }
n=$1
shift
# Without this, processes that are started anew read addresses of those before them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node="$n" \
  --max-restarts="${MAX_RESTARTS:-0}" \
  "$(dirname "$0")/sslsv/bin/train.py" "$@"
