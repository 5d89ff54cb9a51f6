"""Training speed of this program and of the PyTorch stacks on the same CPU, in turn.

    python scripts/compare_cpu.py [--threads 1] [--rounds 3] [--shapes qwen2.5-0.5b ...] [--tokens 512 ...]
                                  [--peers nf4 ...] [--gemm]

Every system takes optimizer steps of LoRA (rank 16 on every linear map of the blocks, AdamW) on random weights of
the same shape, one sequence a step. A peer is one process that stays while rounds alternate between it and
`cargo bench --bench step`, so that other work on the machine meets both; a row gives the medians and the median of
the ratios. With one thread both sides count processor time. Memory is the most that was resident, "first step" the
time from the start of the process to the end of its first step.

`--gemm` compares products instead: ours from bf16 and from NF4 weights with PyTorch's (oneDNN) from bf16.

Needs the environment of `scripts/reference/requirements.txt` and a C++ compiler for `torch.compile`.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 3

# As in benches/support/shapes.rs: hidden, layers, heads, kv heads, feed forward, vocabulary, tied.
SHAPES = {
    "small": (512, 8, 8, 4, 1408, 8192, True),
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "tinyllama-1.1b": (2048, 22, 32, 4, 5632, 32000, False),
}


@dataclass
class Peer:
    """A way to train in PyTorch, and the case of ours that it is held against."""

    title: str
    nf4: bool = False
    dtype: str = "bfloat16"
    compiled: bool = False
    checkpointing: bool = False
    environment: dict = field(default_factory=dict)
    flags: list = field(default_factory=list)

    def case(self, shape, tokens):
        keep = "recomputed" if self.checkpointing else "kept"
        return f"{shape}/{tokens}/{keep}" + ("/f32" if self.dtype == "float32" else "")


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
PEERS = {
    "nf4": Peer("peft + bitsandbytes NF4", nf4=True),
    "nf4-compiled": Peer("peft + bitsandbytes NF4, compiled", nf4=True, compiled=True),
    "nf4-checkpointing": Peer("peft + bitsandbytes NF4, checkpointing", nf4=True, checkpointing=True),
    "bf16": Peer("peft on bf16 weights"),
    "bf16-compiled": Peer("peft on bf16 weights, compiled", compiled=True),
    "bf16-checkpointing": Peer("peft on bf16 weights, checkpointing", checkpointing=True),
    "f32": Peer("peft on f32 weights", dtype="float32"),
    "f32-avx2": Peer(
        "peft on f32 weights, AVX2", dtype="float32", environment=AVX2, flags=["--simd", "avx2"]
    ),
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--shapes", nargs="+", choices=SHAPES, default=["qwen2.5-0.5b"])
    arguments.add_argument("--tokens", nargs="+", type=int, default=[512])
    arguments.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments.add_argument("--gemm", action="store_true")
    arguments.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = arguments.parse_args()
    if arguments.worker:
        peer, shape, tokens = arguments.worker
        return work(PEERS[peer], SHAPES[shape], int(tokens), arguments.threads)
    print(f"{processor()}, {arguments.threads} thread(s), {arguments.rounds} rounds\n")
    subprocess.run(bench("step", "--no-run"), cwd=ROOT, check=True)
    if arguments.gemm:
        return compare_gemm(arguments)
    print("| shape, tokens, blocks | peer | tokens/s: ours | peer | ratio | GB: ours | peer | first step, s: ours | peer |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for shape in arguments.shapes:
        for tokens in arguments.tokens:
            for peer in arguments.peers:
                print(compare(peer, shape, tokens, arguments), flush=True)


def processor():
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else "unknown processor"


def bench(name, *flags):
    return ["cargo", "bench", "--quiet", "--bench", name, *flags]


def compare(name, shape, tokens, arguments):
    """One row of the table."""
    peer = PEERS[name]
    case = peer.case(shape, tokens)
    worker = Worker(name, shape, tokens, arguments.threads)
    rounds = [
        (ours(case, arguments.threads, peer.flags), worker.step()) for _ in range(arguments.rounds)
    ]
    mine = statistics.median(ours["tokens_per_second"] for ours, _ in rounds)
    theirs = statistics.median(tokens / seconds for _, seconds in rounds)
    ratio = statistics.median(
        ours["tokens_per_second"] * seconds / tokens for ours, seconds in rounds
    )
    memory = max(ours["peak_resident_bytes"] for ours, _ in rounds)
    first = statistics.median(
        ours["start_to_first_step_seconds"] + tokens / ours["tokens_per_second"] for ours, _ in rounds
    )
    their_memory = worker.finish()
    return (
        f"| {case} | {peer.title} | {mine:.1f} | {theirs:.1f} | **{ratio:.2f}** "
        f"| {memory / 1e9:.2f} | {their_memory / 1e9:.2f} | {first:.1f} | {worker.first_step:.1f} |"
    )


def ours(case, threads, flags):
    command = bench("step", "--", case, "--json", "--threads", str(threads), *flags)
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


class Worker:
    """A peer in a process of its own, stepped when asked."""

    def __init__(self, peer, shape, tokens, threads):
        environment = os.environ | PEERS[peer].environment
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--threads", str(threads)]
        command += ["--worker", peer, shape, str(tokens)]
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.answer()
        self.first_step = time.perf_counter() - begun

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a peer ended with {self.process.wait()}")

    def step(self):
        print("step", file=self.process.stdin, flush=True)
        return self.answer()["seconds"]

    def finish(self):
        print("end", file=self.process.stdin, flush=True)
        bytes = self.answer()["peak_resident_bytes"]
        self.process.wait()
        return bytes


def work(peer, shape, tokens, threads):
    """The process of a peer: a first step, then some whenever a line says so."""
    step = training(peer, shape, tokens, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    step()
    answer(ready=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        seconds = []
        for _ in range(STEPS):
            begun = clock()
            step()
            seconds.append(clock() - begun)
        answer(seconds=statistics.median(seconds))
    answer(peak_resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def answer(**what):
    print(json.dumps(what), flush=True)


def training(peer, shape, tokens, threads):
    """A function that takes one optimizer step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    hidden, layers, heads, kv_heads, feed_forward, vocabulary, tied = shape
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=feed_forward, vocab_size=vocabulary, tie_word_embeddings=tied, use_cache=False,
        max_position_embeddings=4096,
    )
    dtype = getattr(torch, peer.dtype)
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if peer.nf4:
        quantize(model)
    if peer.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-4)
    run = torch.compile(model) if peer.compiled else model
    ids = torch.randint(0, vocabulary, (1, tokens))

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def quantize(model):
    """Replaces the linear maps of the blocks by bitsandbytes' NF4 ones."""
    import bitsandbytes as bnb
    import torch

    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                linear = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None,
                    compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
                )
                linear.load_state_dict(child.state_dict())
                setattr(module, name, linear.to("cpu"))


def compare_gemm(arguments):
    """Products of the named shapes, forward (Nt) and backward (Nn)."""
    import torch

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    rounds = []
    for _ in range(arguments.rounds):
        mine = our_products(arguments)
        theirs = {key: torch_product(torch, clock, *key[1:]) for key in mine if key[0] == "Bf16"}
        rounds.append((mine, theirs))
    print("| product | GFLOP/s: ours, bf16 | ours, NF4 | oneDNN, bf16 | bf16 ratio | NF4 ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for key in rounds[0][1]:
        nf4 = ("Nf4", *key[1:])
        speeds = [(mine[key], mine[nf4], theirs[key]) for mine, theirs in rounds]
        bf16, four, peer = (statistics.median(column) for column in zip(*speeds))
        ratios = [statistics.median(s[i] / s[2] for s in speeds) for i in (0, 1)]
        print(
            f"| {key[1]} {key[2]} x {key[3]} x {key[4]} | {bf16:.0f} | {four:.0f} | {peer:.0f} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )


def our_products(arguments):
    """GFLOP/s by right operand, form, M, N, K."""
    plural = "" if arguments.threads == 1 else "s"
    rows = "|".join(str(tokens) for tokens in arguments.tokens)
    wanted = f"gemm, {arguments.threads} thread{plural}/(Bf16|Nf4) N./({rows})x[0-9]{{3,}}x[0-9]{{3,}}"
    run = subprocess.run(
        bench("kernels", "--", wanted), cwd=ROOT, check=True, capture_output=True, text=True
    )
    products, key = {}, None
    for line in run.stdout.splitlines():
        if name := re.match(r"gemm, .*/(\w+) (N\w)/(\d+)x(\d+)x(\d+)", line):
            key = (name[1], name[2], *(int(number) for number in name.groups()[2:]))
        if speed := re.match(r"\s+(\d+) GFLOP/s", line):
            products[key] = float(speed[1])
    return products


def torch_product(torch, clock, form, m, n, k):
    left = torch.randn(m, k, dtype=torch.bfloat16)
    right = torch.randn(n, k, dtype=torch.bfloat16).t() if form == "Nt" else torch.randn(k, n, dtype=torch.bfloat16)
    seconds = []
    for _ in range(9):
        begun = clock()
        torch.mm(left, right)
        seconds.append(clock() - begun)
    return 2 * m * n * k / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    sys.exit(main())
