#!/usr/bin/env bash
# Changes bytes of everything that is read from outside, for SECONDS (3600) each, from another seed every time.
#   scripts/fuzz.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
export QLORA_FUZZ_SECONDS="${1:-3600}" QLORA_FUZZ_SEED="${QLORA_FUZZ_SEED:-$(date +%s)}"
echo "seed $QLORA_FUZZ_SEED"
cargo test --release --test fuzz -- --nocapture
