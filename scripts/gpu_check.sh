#!/usr/bin/env bash
# The kernels on a real GPU: proven, then measured.
#
#   scripts/gpu_check.sh pack            here: builds, and puts what is needed into target/gpu_check
#   scripts/gpu_check.sh run OUT         there: builds nothing, writes OUT/gpu.json and OUT/gpu.md
#
# There, Python makes a model of 8e9 parameters (6 GB of disk) and trains it. With torch, the table gets the speed
# of cuBLAS, SDPA and a plain copy on the same card.
set -euo pipefail
cd "$(dirname "$0")/.."
packed=target/gpu_check
suites=(instructions device queue models curve streaming plan)

pack() {
    mkdir -p "$packed"
    cargo build --release --bin qlora-train
    # The programs that cargo names, by the name of their target.
    cargo test --release --no-run "${suites[@]/#/--test=}" --message-format json >"$packed/built.json"
    cargo bench --no-run --bench gpu --message-format json >>"$packed/built.json"
    python3 - "$packed" "${suites[@]}" gpu <<'PYTHON'
import json, shutil, sys
folder = sys.argv[1]
for line in open(f"{folder}/built.json"):
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] in sys.argv[2:]:
        shutil.copy(built["executable"], f"{folder}/{built['target']['name']}")
PYTHON
    cp target/release/qlora-train "$packed/"
    git rev-parse HEAD >"$packed/commit"
    rm "$packed/built.json"
    strip "$packed"/{gpu,qlora-train} "${suites[@]/#/$packed/}"
    du -sh "$packed"
}

run() {
    local out=$1
    mkdir -p "$out"
    "$packed/qlora-train" doctor | tee "$out/doctor.txt"
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv \
        >"$out/card.csv" 2>/dev/null || echo "nvidia-smi is not there" >"$out/card.csv"
    # A test that fails is part of the result: the measurements go on.
    for suite in "${suites[@]}"; do
        # The first three are all about the GPU; of the others, those tests that are named after it.
        local only=gpu
        [[ $suite == instructions || $suite == device || $suite == queue ]] && only=""
        if TEST_DEVICE=cuda "$packed/$suite" $only >"$out/$suite.txt" 2>&1; then
            echo passed >"$out/$suite.result"
        else
            echo FAILED >"$out/$suite.result"
        fi
        echo "$suite on the GPU: $(cat "$out/$suite.result")"
    done
    "$packed/gpu" ${GPU_CHECK_FLAGS:-} --output "$out/kernels.json"
    python3 scripts/gpu_anchors.py "$out/anchors.json" || echo "no anchors: torch does not run here"
    training "$out"
    python3 scripts/gpu_table.py "$out" "$(cat "$packed/commit")"
    cat "$out/gpu.md"
}

# Whole steps of a model of 8e9 parameters with random weights: as fast as it goes, and within 7 GiB.
training() {
    local folder
    folder=$(mktemp -d)
    local common=("$folder" --shapes "${GPU_CHECK_SHAPE:-8b}" --device cuda --program "$packed/qlora-train" --keep
        --tokens "${GPU_CHECK_TOKENS:-2048}" --micro-batches 2 --steps 3)
    for how in "24GiB resident" "7GiB resident" "7GiB streamed"; do
        read -r budget weights <<<"$how"
        python3 scripts/large_models.py "${common[@]}" --budget "${GPU_CHECK_BUDGET:-$budget}" --weights "$weights" \
            --json "$1/training_${budget}_$weights.json" || echo "training in $budget, $weights: FAILED"
    done
    rm -rf "$folder"
}

case "${1:-}" in
pack) pack ;;
run) run "${2:?where to write}" ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
