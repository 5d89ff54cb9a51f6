#!/usr/bin/env bash
# Share of lines that tests run, outside of what needs a card. Needs `rustup component add llvm-tools`.
#   scripts/coverage.sh [FOLDER]     where builds and reports go (target/coverage)
# A test that limits the size of files is left out: the limit would hold for what is recorded, too. So are real
# models, whose products take very long where every line is counted.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(realpath -m "${1:-target/coverage}")"
tools="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/host: //p')/bin"
mkdir -p "$folder"
rm -f "$folder"/*.profraw
# Not the emulator: it would be ten times slower, and no line of it is the product's.
cat > "$folder/rustc" <<'END'
#!/bin/bash
case " $* " in
    *" --crate-name qlora_train "*) exec "$@" -C instrument-coverage ;;
    *) exec "$@" ;;
esac
END
chmod +x "$folder/rustc"
export CARGO_TARGET_DIR="$folder" RUSTC_WORKSPACE_WRAPPER="$folder/rustc"
export LLVM_PROFILE_FILE="$folder/%p-%16m.profraw" QLORA_FUZZ_SECONDS="${QLORA_FUZZ_SECONDS:-2}"
export QLORA_SHARED=none
cargo test --release -p qlora-train --no-fail-fast -- --skip a_full_disk_is_told_and_costs_no_checkpoint
"$tools/llvm-profdata" merge -sparse "$folder"/*.profraw -o "$folder/all.profdata"
objects=(-object "$folder/release/qlora-train")
for object in "$folder"/release/deps/*-????????????????; do
    if [ -x "$object" ] && [ -f "$object" ]; then objects+=(-object "$object"); fi
done
"$tools/llvm-cov" report -instr-profile "$folder/all.profdata" "${objects[@]}" \
    --ignore-filename-regex '(^|/)(tests|benches)/|/\.cargo/|/rustc/|src/device/cuda/|src/ffi' \
    > "$folder/report.txt"
tail -n 1 "$folder/report.txt"
