"""Optimizer steps of models that need not fit into memory: made with random weights, read from disk.

    cargo build --release
    python scripts/large_models.py FOLDER [--shapes 7b,70b] [--budget 5GiB] [--keep]
    python scripts/large_models.py FOLDER --shapes 8b --device cuda --weights resident --tokens 512 --steps 4

For each shape a store of four-bit weights is made in FOLDER (35 GB for 70b), and micro-batches of random tokens
train an adapter of rank 8 for it, within the budget. Printed, as a Markdown table: the size of the store, the
bytes of it that were read, the largest resident set of the process as the system saw it, the peak of what was
planned and taken on the device, and the speed of the steps from the third on, or of the last one if there are no
more. A shape that the disk has no room for is said to be left out. With --keep the stores stay, and are used again;
with --json FILE the numbers go there, too, and with --profile FILE the timeline of the run.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# hidden, feed-forward, layers, heads, key-value heads, vocabulary
SHAPES = {
    "toy": (64, 128, 2, 2, 1, 128),
    "tiny": (256, 512, 3, 4, 2, 512),
    "1.1b": (2048, 5632, 22, 32, 4, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "70b": (8192, 28672, 80, 64, 8, 32000),
    "104b": (12288, 33792, 64, 96, 8, 32000),
    "130b": (12288, 32768, 70, 96, 96, 150528),
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--shapes", default="7b,70b,104b,130b")
    arguments.add_argument("--budget", default="5GiB")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--weights", default="streamed", choices=["streamed", "resident"])
    arguments.add_argument("--tokens", type=int, default=32, help="of a micro-batch")
    arguments.add_argument("--micro-batches", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=1)
    arguments.add_argument("--program", default=str(ROOT / "target/release/qlora-train"))
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--profile", type=Path)
    arguments.add_argument("--keep", action="store_true")
    arguments.add_argument("--only-make", action="store_true", help="make the stores, keep them and train nothing")
    arguments = arguments.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.only_make:
        for name in arguments.shapes.split(","):
            make(name, arguments)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    found = []
    for name in arguments.shapes.split(","):
        found.append(tried(name, arguments))
        print(row(found[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


COLUMNS = ["shape", "parameters", "store GiB", "read GiB", "of twice the layers", "RSS GiB", "peak GiB", "tokens/s",
           "step s", "loss"]


def row(found):
    if "needs" in found:
        return f"| {found['shape']} | left out: {gib(found['needs'])} GiB of disk needed, {gib(found['free'])} free |"
    read, share = ("", "") if found["read"] is None else (gib(found["read"]), f"{found['share']:.3f}")
    cells = [found["shape"], f"{found['parameters'] / 1e9:.1f}e9", gib(found["store"]), read, share,
             gib(found["resident"]), gib(found["peak"]), f"{found['tokens_per_second']:.1f}",
             f"{found['step_seconds']:.1f}", f"{found['loss']:.3f}"]
    return f"| {' | '.join(cells)} |"


def tried(name, arguments):
    store = arguments.folder / name
    free = shutil.disk_usage(arguments.folder).free
    needs = parameters(name) * 0.52 + tables(name)
    if not store.exists():
        if needs > free:
            return {"shape": name, "needs": needs, "free": free}
        make(name, arguments)
    try:
        return measured(name, store, arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(store)


def make(name, arguments):
    config = arguments.folder / f"{name}.json"
    config.write_text(json.dumps(config_of(name)))
    run(arguments, ["quantize", "--synthetic", config, "--output", arguments.folder / name])


def measured(name, store, arguments):
    output, data = arguments.folder / f"{name}-adapter", arguments.folder / "data.jsonl"
    records = 2 * arguments.micro_batches
    data.write_text("".join(record(i, arguments.tokens, SHAPES[name][5]) for i in range(records)))
    shutil.rmtree(output, ignore_errors=True)
    how = ["--device", arguments.device, "--weights", arguments.weights, "--memory-budget", arguments.budget]
    how += ["--optimizer", "adamw-8bit", "--lora-r", "8", "--no-packing", "--seq-len", str(arguments.tokens)]
    how += ["--max-steps", str(arguments.steps), "--grad-accum", str(arguments.micro_batches)]
    profile = ["--profile", arguments.profile] if arguments.profile else []
    resident = run(arguments, [store, data, "--output-dir", output, *how, *profile])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps, summary = [line for line in lines if "step_seconds" in line], lines[-1]
    # The first two steps make what the others use again.
    timed = steps[2:] or steps[-1:]
    seconds = sum(step["step_seconds"] for step in timed) / len(timed)
    shutil.rmtree(output)
    size, read = (store / "model.safetensors").stat().st_size, summary.get("weight_bytes_read")
    twice = 2 * arguments.steps * (size - tables(name))
    return {
        "shape": name, "parameters": parameters(name), "store": size, "read": read,
        "share": read and read / twice, "resident": resident, "peak": summary["peak_memory_bytes"],
        "tokens_per_second": arguments.tokens * arguments.micro_batches / seconds, "step_seconds": seconds,
        "loss": steps[-1]["loss"], "losses": [step["loss"] for step in steps],
        "grad_norms": [step["grad_norm"] for step in steps],
        "device": arguments.device, "weights": arguments.weights, "budget": arguments.budget,
        "keeps": kept(arguments, [store, *how]),
        "tokens": arguments.tokens, "micro_batches": arguments.micro_batches,
    }


def run(arguments, command):
    """Runs the program and gives the largest resident set that it had, in bytes."""
    command = [arguments.program, *map(str, command)]
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return usage.ru_maxrss * 1024


def kept(arguments, command):
    """What layers keep for the way back, by the plan of the same run: everything, some or inputs."""
    command = [arguments.program, "plan", *map(str, command), "--json"]
    planned = subprocess.run(command, stdout=subprocess.PIPE, stderr=sys.stderr)
    return json.loads(planned.stdout)["choices"]["keep"] if planned.returncode == 0 else None


def tables(name):
    """Bytes of embeddings and head."""
    return 2 * 2 * SHAPES[name][0] * SHAPES[name][5]


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


def record(seed, tokens, vocabulary):
    draw = random.Random(seed)
    ids = [draw.randrange(3, vocabulary) for _ in range(tokens)]
    return json.dumps({"input_ids": ids, "labels": ids}) + "\n"


def gib(size):
    return f"{size / 2**30:.2f}"


if __name__ == "__main__":
    main()
