"""Training speed of this program and of transformers + peft + bitsandbytes on the same CPU, in turn.

    python scripts/compare_cpu.py [--threads 1] [--rounds 3]

Both sides take optimizer steps of QLoRA (NF4 with double quantization, bf16, rank 16 on every linear map of the
blocks, AdamW) over 512 tokens on random weights of Qwen2.5-0.5B's shape, everything kept for the way back. Rounds
alternate, so that other work on the machine meets both; the table gives medians and the median of the ratios.
Needs the environment of `scripts/reference/requirements.txt` and a built `cargo bench --bench step --no-run`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 512
PEER_STEPS = 3


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments = arguments.parse_args()
    peer = Peer(arguments.threads)
    rounds = [(ours(arguments.threads), peer.tokens_per_second()) for _ in range(arguments.rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*rounds))
    ratio = statistics.median(a / b for a, b in rounds)
    print("| | tokens/s |\n| --- | --- |")
    print(f"| qlora-train | {mine:.1f} |")
    print(f"| transformers + peft + bitsandbytes | {theirs:.1f} |")
    print(f"| ratio, median of {len(rounds)} pairs | {ratio:.2f} |")


def ours(threads):
    command = ["cargo", "bench", "--quiet", "--bench", "step", "--"]
    command += ["qwen2.5-0.5b/512/kept", "--json", "--threads", str(threads)]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(lines.splitlines()[-1])["tokens_per_second"]


class Peer:
    """One model in this process, stepped when asked."""

    def __init__(self, threads):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch = torch
        config = Qwen2Config(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, use_cache=False,
        )
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
        quantize(model)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(model, lora)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-4)
        self.ids = torch.randint(0, 151936, (1, TOKENS))
        self.step()

    def step(self):
        with self.torch.autocast("cpu", dtype=self.torch.bfloat16):
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tokens_per_second(self):
        seconds = []
        for _ in range(PEER_STEPS):
            begun = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - begun)
        return TOKENS / statistics.median(seconds)


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


if __name__ == "__main__":
    sys.exit(main())
