#!/usr/bin/env bash
# Share of lines that tests run, outside of what needs a card. Needs `rustup component add llvm-tools`.
#   scripts/coverage.sh [FOLDER]     where builds and reports go (target/coverage)
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-target/coverage}"
tools="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/host: //p')/bin"
export CARGO_TARGET_DIR="$folder" RUSTFLAGS="-C instrument-coverage" LLVM_PROFILE_FILE="$folder/%p-%16m.profraw"
export QLORA_FUZZ_SECONDS="${QLORA_FUZZ_SECONDS:-2}"
mkdir -p "$folder"
rm -f "$folder"/*.profraw
cargo test --release -p qlora-train --no-fail-fast || echo "some tests failed: the share is that of all that ran" >&2
"$tools/llvm-profdata" merge -sparse "$folder"/*.profraw -o "$folder/all.profdata"
objects=()
for object in "$folder"/release/qlora-train "$folder"/release/deps/*-????????????????; do
    if [ -x "$object" ] && [ -f "$object" ]; then objects+=(-object "$object"); fi
done
"$tools/llvm-cov" report -instr-profile "$folder/all.profdata" "${objects[@]}" \
    --ignore-filename-regex '(^|/)(tests|benches)/|/\.cargo/|/rustc/|src/device/cuda/|src/ffi' \
    > "$folder/report.txt"
tail -n 1 "$folder/report.txt"
