#!/usr/bin/env bash
# Looks for bytes that a reader of files cannot take, led by what an input reaches in the program (libFuzzer).
#   scripts/fuzz.sh [SECONDS [TARGET...]]     seconds for each target (3600); all targets, one on each core
# What was reached stays in target/guided/corpus and the next run goes on from it; what was found is named
# target/guided/found/TARGET-*. Needs a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-3600}"
shift || true
folder="$PWD/target/guided"
host="$(rustc -vV | sed -n 's/host: //p')"
cargo build --release --quiet
RUSTFLAGS="-Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --quiet -p guided-fuzz --features libfuzzer --target "$host" --target-dir "$folder"
export READ="$folder/$host/release/read" FOLDER="$folder" SECONDS_EACH="$seconds"
run() {
    mkdir -p "$FOLDER/corpus/$1" "$FOLDER/found"
    export QLORA_FUZZ_TARGET="$1" QLORA_FUZZ_CORPUS="$FOLDER/corpus/$1"
    "$READ" "$QLORA_FUZZ_CORPUS" -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=1024 -max_len=262144 \
        -artifact_prefix="$FOLDER/found/$1-" > "$FOLDER/$1.log" 2>&1 || { tail -n 20 "$FOLDER/$1.log"; exit 1; }
    echo "$1: $(grep -a '^Done' "$FOLDER/$1.log"), $(grep -a 'cov:' "$FOLDER/$1.log" | tail -n 1 | grep -ao 'cov: [0-9]*')"
}
export -f run
if [ $# -eq 0 ]; then
    read -ra names <<< "$(sed -n 's/^    ("\([a-z_]*\)", .*/\1/p' tests/fuzz/targets.rs | tr '\n' ' ')"
else
    names=("$@")
fi
printf '%s\n' "${names[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run "$1"' _ {}
