"""One optimizer step of models that do not fit into memory: made with random weights, read from disk.

    cargo build --release
    python scripts/large_models.py FOLDER [--shapes 7b,70b] [--budget 6GiB] [--keep]

For each shape a store of four-bit weights is made in FOLDER (35 GB for 70b), and 128 tokens in four
micro-batches train an adapter of rank 8 for it, within the budget and with two threads. Printed, as a Markdown table:
the size of the store, the bytes of it that were read, the largest resident set of the process as the
system saw it, and the time. A shape that the disk has no room for is said to be left out. With --keep
the stores stay, and are used again.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/qlora-train"
MICRO_BATCHES, TOKENS = 4, 32

# hidden, feed-forward, layers, heads, key-value heads, vocabulary
SHAPES = {
    "1.1b": (2048, 5632, 22, 32, 4, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "70b": (8192, 28672, 80, 64, 8, 32000),
    "104b": (12288, 33792, 64, 96, 8, 32000),
    "130b": (12288, 32768, 70, 96, 96, 150528),
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shapes", default="7b,70b,104b,130b")
    arguments.add_argument("--budget", default="6GiB")
    arguments.add_argument("--keep", action="store_true")
    arguments = arguments.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = arguments.folder / "data.jsonl"
    data.write_text("".join(record(i) for i in range(2 * MICRO_BATCHES)))
    print("| shape | parameters | store GiB | read GiB | of twice the layers | RSS GiB | planned GiB | step s | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.shapes.split(","):
        print(row(name, arguments, data), flush=True)


def row(name, arguments, data):
    store = arguments.folder / name
    free = shutil.disk_usage(arguments.folder).free
    needed = parameters(name) * 0.52 + 2 * 2 * SHAPES[name][0] * SHAPES[name][5]
    if not store.exists() and needed > free:
        return f"| {name} | left out: {gib(needed)} GiB of disk needed, {gib(free)} free |"
    if not store.exists():
        config = arguments.folder / f"{name}.json"
        config.write_text(json.dumps(config_of(name)))
        run(["quantize", "--synthetic", config, "--output", store])
    try:
        return measured(name, store, data, arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(store)


def measured(name, store, data, arguments):
    output = arguments.folder / f"{name}-adapter"
    shutil.rmtree(output, ignore_errors=True)
    command = [store, data, "--output-dir", output, "--device", "cpu", "--threads", "2"]
    command += ["--memory-budget", arguments.budget, "--optimizer", "adamw-8bit", "--max-steps", "1"]
    command += ["--weights", "streamed", "--lora-r", "8", "--no-packing", "--grad-accum", str(MICRO_BATCHES), "--seq-len", str(TOKENS)]
    begun = time.monotonic()
    resident = run(command)
    seconds = time.monotonic() - begun
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    step, summary = lines[0], lines[-1]
    shutil.rmtree(output)
    size = (store / "model.safetensors").stat().st_size
    tables = 2 * 2 * SHAPES[name][0] * SHAPES[name][5]
    read = summary["weight_bytes_read"]
    share = read / (2 * (size - tables))
    return (
        f"| {name} | {parameters(name) / 1e9:.1f}e9 | {gib(size)} | {gib(read)} | {share:.3f} | {gib(resident)} "
        f"| {gib(summary['peak_memory_bytes'])} | {step['step_seconds']:.0f} (all {seconds:.0f}) | {step['loss']:.3f} |"
    )


def run(arguments):
    """Runs the program and gives the largest resident set that it had, in bytes."""
    command = [str(PROGRAM), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return usage.ru_maxrss * 1024


def config_of(name):
    hidden, feed_forward, layers, heads, kv_heads, vocabulary = SHAPES[name]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }


def parameters(name):
    hidden, feed_forward, layers, heads, kv_heads, vocabulary = SHAPES[name]
    attention = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads
    return layers * (attention + 3 * hidden * feed_forward) + 2 * hidden * vocabulary


def record(seed):
    draw = random.Random(seed)
    tokens = [draw.randrange(3, 30000) for _ in range(TOKENS)]
    return json.dumps({"input_ids": tokens, "labels": tokens}) + "\n"


def gib(size):
    return f"{size / 2**30:.2f}"


if __name__ == "__main__":
    main()
