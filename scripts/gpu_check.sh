#!/usr/bin/env bash
# The kernels on a real GPU: proven, then measured, within the minutes that a card is lent for.
#
#   scripts/gpu_check.sh pack        on a machine with Rust: builds everything into one file
#   scripts/gpu_check.sh run OUT     on the machine with the card: writes OUT/gpu.md and OUT/gpu.json
#
# Pack: `target/gpu_check/pack.tar.xz`, at most 20 MB, holds the programs without their symbols (`qlora-train`, the
# tests `engine`, the bench `gpu`), the commit, and the hashes of all sources that they were built from.
# Carry: the files that git tracks, and target/gpu_check, which git ignores; no Rust and no network are needed there.
# Run: from the root of what was carried, with Python 3 and a driver. With torch, the table has the speed of cuBLAS,
# SDPA and a plain copy beside ours. Training makes a model of 8e9 parameters in $TMPDIR (6 GB).
#
# It ends within 300 s, and no step takes longer than its limit. The table is written again after every step and at
# the end, whatever ends it; what is missing there says why. The exit status is 0 if every step passed.
#
#   GPU_CHECK_SECONDS   the limit of all, 300; give whoever runs this ten seconds more
#   GPU_CHECK_STEPS     the names of the steps to do (`plan` below), all
#   GPU_CHECK_KERNELS   an extended regular expression that names of kernel tests match, all
#   GPU_CHECK_KERNEL_SECONDS, GPU_CHECK_FLAGS, GPU_CHECK_SHAPE, GPU_CHECK_TOKENS, GPU_CHECK_BUDGETS
#                       the limit of one kernel test; arguments of the bench; the model that is trained, its tokens,
#                       and the budgets for everything kept, for inputs kept and for streamed weights
set -euo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu_check/pack.tar.xz
most_bytes=20000000

# What is done, in this order, and for how many seconds at most.
plan=(
    "doctor 20" "compiled 30"
    "kernels 100" "instructions 20" "device 20" "queue 20" "streaming 30" "models 30"
    "bench 80" "anchors 50"
    "store 40" "kept 40" "inputs 40" "streamed 40" "profile 30"
)

main() {
    case "${1:-}" in
    pack) pack ;;
    run) run "${2:?where to write}" ;;
    *) usage && exit 2 ;;
    esac
}

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }

fail() {
    echo "gpu_check: $*" >&2
    exit 1
}

# ---- here ----------------------------------------------------------------------------------------------------------

pack() {
    staged=$(mktemp -d)
    trap 'rm -rf "$staged"' EXIT
    build
    strip "$staged"/{qlora-train,engine,gpu}
    commit >"$staged/commit"
    sources | xargs -0 sha256sum >"$staged/sources"
    mkdir -p "$(dirname "$pack")"
    python3 - "$staged" "$pack" <<'PYTHON'
import sys, tarfile
# The programs share most of their code: a dictionary that spans them all stores it once.
with tarfile.open(sys.argv[2], "w:xz", preset=9) as archive:
    archive.add(sys.argv[1], arcname=".")
PYTHON
    local bytes
    bytes=$(stat --format %s "$pack")
    ((bytes <= most_bytes)) || fail "$pack has $bytes bytes, and $most_bytes may be carried: pack less"
    echo "$pack: $bytes bytes of $(cat "$staged/commit")"
}

# Builds, and copies the programs that cargo names by the name of their target.
build() {
    cargo build --release --bin qlora-train --message-format json-render-diagnostics >"$staged/built"
    cargo test --release --no-run --test engine --message-format json-render-diagnostics >>"$staged/built"
    cargo bench --no-run --bench gpu --message-format json-render-diagnostics >>"$staged/built"
    python3 - "$staged" <<'PYTHON'
import json, shutil, sys
for line in open(f"{sys.argv[1]}/built"):
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] in ["qlora-train", "engine", "gpu"]:
        shutil.copy(built["executable"], f"{sys.argv[1]}/{built['target']['name']}")
PYTHON
    rm "$staged/built"
}

commit() {
    local changes=""
    [[ -z $(git status --porcelain) ]] || changes=" with changes"
    echo "$(git rev-parse HEAD)$changes"
}

# What the programs are built from, and read. Scripts are not: the carried ones run.
sources() {
    git ls-files -z --cached --others --exclude-standard -- \
        Cargo.toml Cargo.lock build.rs src ffi kernels benches tests ':!kernels/*.json'
}

# ---- there ---------------------------------------------------------------------------------------------------------

run() {
    out=$(realpath --canonicalize-missing "$1")
    programs=$(mktemp -d)
    trap 'rm -rf "$programs"' EXIT
    unpack
    find_card
    begin
    local name limit
    for planned in "${plan[@]}"; do
        read -r name limit <<<"$planned"
        is_wanted "$name" && step "$name" "$limit"
    done
    [[ $all_passed == yes ]]
}

unpack() {
    [[ -f $pack ]] || fail "there is no $pack: make it with 'scripts/gpu_check.sh pack' and carry it here"
    # A Python without the module lzma has a tar beside it.
    python3 -m tarfile -e "$pack" "$programs" 2>/dev/null || tar -xJf "$pack" -C "$programs" ||
        fail "$pack cannot be unpacked: carry it again"
    local changed
    changed=$(sha256sum --check --quiet "$programs/sources" 2>/dev/null | head -n 1) || true
    [[ -z $changed ]] || fail "the pack is of commit $(cat "$programs/commit") and not of these sources" \
        "(${changed%%:*}): pack again, or carry the tree that was packed"
}

# Ends the run where no card is that the kernels run on: one line, of the program itself.
find_card() {
    local why
    why=$(timeout --kill-after=3 30 "$programs/qlora-train" doctor --json | python3 -c '
import json, sys
gpu = json.load(sys.stdin)["gpu"]
print("" if gpu["found"] else gpu["why"])') ||
        fail "'qlora-train doctor' does not answer: look at the driver with nvidia-smi"
    [[ -z $why ]] || fail "no card to check: $why; run this where 'qlora-train doctor' finds one"
}

# From here on nothing ends the run without a table.
begin() {
    mkdir -p "$out"
    [[ -z $(ls -A "$out") ]] || fail "$out is not empty: name a new folder"
    mkdir "$out/kernels"
    deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-300} - reserve))
    all_passed=yes
    export TEST_DEVICE=cuda TEST_DUMP="$out/dumps"
    cp "$programs/commit" "$out/commit"
    echo "GPU_CHECK_SECONDS=${GPU_CHECK_SECONDS:-300} scripts/gpu_check.sh run" >"$out/command"
    local name limit
    for planned in "${plan[@]}"; do
        read -r name limit <<<"$planned"
        if is_wanted "$name"; then note "$name" "not reached" 0 "$limit"; fi
    done
    predict
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    sample_clocks
    table
}

# What is expected of each case of the bench; a table without it is a table.
predict() {
    timeout 20 python3 scripts/predict_kernels.py --cases --json >"$out/predictions.jsonl" 2>/dev/null ||
        rm "$out/predictions.jsonl"
}

# Seconds that are left for the end: to kill what hangs, and to write the table.
reserve=8

finish() {
    local status=$?
    trap '' HUP INT TERM
    kill_group "$running"
    kill_group "$sampler"
    table
    rm -rf "$programs" "$models"
    cat "$out/gpu.md"
    exit "$status"
}

# Process groups that must not outlive this one, and the folder of the models.
running="" sampler="" models=""

kill_group() { [[ -z $1 ]] || kill -KILL -- "-$1" 2>/dev/null || true; }

sample_clocks() {
    command -v nvidia-smi >/dev/null || return 0
    timeout "${GPU_CHECK_SECONDS:-300}" nvidia-smi --format=csv,noheader,nounits --loop-ms=500 \
        --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu \
        >"$out/clocks.csv" 2>/dev/null &
    sampler=$!
}

table() { python3 scripts/gpu_table.py "$out" || echo "gpu_check: the table could not be written" >&2; }

is_wanted() { [[ -z ${GPU_CHECK_STEPS:-} || " $GPU_CHECK_STEPS " == *" $1 "* ]]; }

# The state of a step: the last line of a name counts.
note() {
    local IFS=$'\t'
    echo "$*" >>"$out/steps.tsv"
}

# Does the step `do_NAME`, for some seconds at most; what it says goes to NAME.txt.
step() {
    local name=$1 limit=$2 begun=$SECONDS status=0
    ends=$((begun + limit < deadline ? begun + limit : deadline))
    ((begun < ends)) || { all_passed=no && return; }
    echo "gpu_check: $name"
    note "$name" "cut off" 0 "$limit"
    "do_$name" >"$out/$name.txt" 2>&1 || status=$?
    local outcome
    case $status in
    0) outcome=passed ;;
    124 | 137) outcome="timed out" ;;
    *) outcome=failed ;;
    esac
    [[ $outcome == passed ]] || all_passed=no
    note "$name" "$outcome" $((SECONDS - begun)) $((ends - begun))
    table
}

# Runs a command for some seconds at most, and not beyond the end of its step: 124 or 137 if it was ended. It is in
# the background so that a signal to this script is heard at once.
bounded() {
    local limit=$1 left=$((ends - SECONDS)) status=0
    shift
    ((left > 0)) || return 124
    timeout --kill-after=3 "$((limit < left ? limit : left))" "$@" &
    running=$!
    # Bash would tell here of a process that was killed.
    { wait "$running" || status=$?; } 2>/dev/null
    # `timeout` leads a group of processes; a child of the command that hangs is still in it.
    kill_group "$running"
    running=""
    return "$status"
}

do_doctor() { bounded 20 "$programs/qlora-train" doctor; }

# Registers, local memory and blocks of each kernel, as this driver has it. Local memory is registers that spill.
do_compiled() {
    bounded 30 "$programs/qlora-train" doctor --kernels || return
    bounded 30 "$programs/qlora-train" doctor --kernels --json >"$out/compiled.json" || return
    ! grep -q "^local memory" "$out/compiled.txt"
}

# Every kernel in a process of its own: one that hangs or loses the device takes no other with it.
do_kernels() {
    local tests test status bad=0 begun said
    tests_of kernels "${GPU_CHECK_KERNELS:-.}" >"$out/kernels.list"
    mapfile -t tests <"$out/kernels.list"
    ((${#tests[@]} > 0)) || { echo "error: no test of a kernel is named so" && return 1; }
    for test in "${tests[@]}"; do
        ((SECONDS < ends)) || return 124
        echo "$test"
        said="$out/kernels/${test//::/.}.txt" status=0 begun=$EPOCHREALTIME
        bounded "${GPU_CHECK_KERNEL_SECONDS:-10}" "$programs/engine" --exact "$test" >"$said" 2>&1 || status=$?
        printf '%s\t%s\t%s\t%s\n' "$test" "$status" "$begun" "$EPOCHREALTIME" >>"$out/kernels.tsv"
        if ((status == 0)); then rm "$said"; else bad=$((bad + 1)); fi
    done
    ((bad == 0)) || { echo "FAILED: $bad of ${#tests[@]}" && return 1; }
}

do_instructions() { suite instructions .; }
do_device() { suite device .; }
do_queue() { suite queue .; }
# Of suites that are about the CPU as well, the tests that are named after a GPU.
do_streaming() { suite streaming gpu; }
do_models() { suite models gpu; }

suite() {
    local tests
    mapfile -t tests < <(tests_of "$1" "$2")
    ((${#tests[@]} > 0)) || { echo "error: no test of $1 is named *$2*" && return 1; }
    bounded 60 "$programs/engine" --exact "${tests[@]}"
}

# Names of the tests of a module that match an expression.
tests_of() {
    timeout 10 "$programs/engine" "$1::" --list --format terse | sed -n "s/^\($1::.*\): test$/\1/p" |
        grep -E -- "$2"
}

# The status 3 asks for one more process: the device was lost to the one before, which has kept its results.
do_bench() {
    local status=3
    while ((status == 3)); do
        status=0
        # The flags are words of their own.
        # shellcheck disable=SC2086
        bounded 300 "$programs/gpu" ${GPU_CHECK_FLAGS:-} --output "$out/bench.json" || status=$?
    done
    return "$status"
}

do_anchors() { bounded 60 python3 scripts/gpu_anchors.py "$out/anchors.json"; }

do_store() {
    models=$(mktemp -d)
    train everything --only-make
}
do_kept() { train everything --weights resident --json "$out/training_kept.json"; }
do_inputs() { train inputs --weights resident --json "$out/training_inputs.json"; }
do_streamed() { train layers --weights streamed --json "$out/training_streamed.json"; }
do_profile() { train everything --weights resident --steps 1 --profile "$out/timeline.json"; }

# Steps of the large model in the budget in which so much is kept.
train() {
    local everything inputs layers
    read -r everything inputs layers <<<"${GPU_CHECK_BUDGETS:-24GiB 6500MiB 7GiB}"
    local -A budgets=([everything]=$everything [inputs]=$inputs [layers]=$layers)
    local budget=${budgets[$1]}
    shift
    bounded 60 python3 scripts/large_models.py "$models" --shapes "${GPU_CHECK_SHAPE:-8b}" --device cuda --keep \
        --program "$programs/qlora-train" --tokens "${GPU_CHECK_TOKENS:-2048}" --micro-batches 2 --steps 4 \
        --budget "$budget" "$@"
}

main "$@"
