"""Training curves of a built qlora-train beside torch in float64: `python interop_curve.py BINARY [CASE...]`.

Other settings and models than the fixtures in tests/fixtures/curve: what metrics.jsonl says of each
of 50 steps is compared, and the adapter at the end. Torch sees each record alone: sliding windows
and explicit masks of packed rows do not go together in transformers.
"""
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import bitsandbytes
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

import curve
from common import load, logits, loss_sum, supervised
from curve import chunks, next_fit, write_lines
from interop import LORAS, write_adapter, write_model

RULE = {"learning_rate": 2e-3, "lr_scheduler": "cosine", "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "batch_size": 1, "grad_accum": 1, "packing": False}
# `records` and `epochs` make 50 steps of each; the last window of an epoch is short.
CASES = {
    "linear": {**RULE, "model": "llama-biases", "base": "none", "lora": 0, "lr_scheduler": "linear", "weight_decay": 0.1,
               "batch_size": 3, "grad_accum": 2, "epochs": 2.5, "records": 116, "max_grad_norm": 0.5},
    "betas": {**RULE, "model": "qwen2", "base": "nf4", "lora": 2, "lr_scheduler": "constant", "adam_beta1": 0.8,
              "adam_beta2": 0.95, "adam_epsilon": 1e-5, "batch_size": 2, "grad_accum": 2, "epochs": 2.5, "records": 79,
              "warmup_steps": 7},
    "packed": {**RULE, "model": "mistral", "base": "nf4", "lora": 1, "packing": True, "seq_len": 48, "batch_size": 2,
               "grad_accum": 2, "weight_decay": 0.1, "max_steps": 50, "records": 61, "max_grad_norm": 0.5},
    "gemma": {**RULE, "model": "gemma3", "base": "none", "lora": 0, "packing": True, "seq_len": 48, "batch_size": 1,
              "grad_accum": 3, "max_steps": 50, "records": 40, "lr_scheduler": "linear", "warmup_steps": 0},
    # Beside bitsandbytes' own optimizer, whose code on the CPU only approximates its kernels: no case for 1e-5.
    "eight-bit": {**RULE, "model": "llama-biases", "base": "none", "lora": 4, "optimizer": "adamw-8bit", "weight_decay": 0.1,
                  "batch_size": 2, "grad_accum": 2, "max_steps": 50, "records": 60, "limit": 2e-3},
}
STEPS = 50


def main():
    binary, *names = sys.argv[1:]
    wrong = []
    for i, name in enumerate(CASES):
        if not names or name in names:
            with TemporaryDirectory() as work:
                wrong += compare(Path(binary).resolve(), Path(work), name, CASES[name], torch.Generator().manual_seed(100 + i))
    sys.exit(f"failed: {wrong}" if wrong else 0)


def compare(binary, work, name, case, seed):
    write_model(work / "model", work / "old", case["model"], seed)
    records = [curve.record(seed) for _ in range(case["records"])]
    write_lines(work / "data.jsonl", records)
    start = write_adapter(work / "model", work / "adapter", LORAS[case["lora"]], seed)
    own, own_end = run(binary, work, case, start)
    true, true_end = torch_curve(work / "model", case, start, records)
    apart = lambda key, steps: max(abs(a[key] - b[key]) / max(abs(b[key]), 1e-12) for a, b in list(zip(own, true, strict=True))[:steps])
    scaled = max(((own_end[k].to(v.dtype) - v).abs().max() / v.abs().max()).item() for k, v in true_end.items())
    distances = {"learning_rate": apart("learning_rate", STEPS), "loss": apart("loss", STEPS), "grad_norm (first 5)": apart("grad_norm", 5)}
    print(f"{name}: loss {true[0]['loss']:.3f} to {true[-1]['loss']:.3f};", *(f"{k} {v:.1g};" for k, v in distances.items()),
          f"grad_norm (all) {apart('grad_norm', STEPS):.1g}; adapter {scaled:.1g}", flush=True)
    return [f"{name}: {k}" for k, v in distances.items() if not v <= case.get("limit", 1e-5)]


def run(binary, work, case, start):
    words = [binary, work / "model", work / "data.jsonl", "--output-dir", work / "out", "--init-adapter", start, "--dtype", "f32",
             "--no-shuffle", "--lora-dropout", "0", "--quantization", case["base"]]
    for key in sorted(case.keys() - {"model", "base", "lora", "packing", "records", "limit"}):
        words += ["--" + key.replace("_", "-"), case[key]]
    words.append("--packing" if case["packing"] else "--no-packing")
    subprocess.run([str(w) for w in words], check=True, capture_output=True)
    lines = map(json.loads, (work / "out/metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line and not line.get("summary")], load_file(work / "out/adapter_model.safetensors")


def torch_curve(folder, case, start, records):
    eight_bit = case.get("optimizer") == "adamw-8bit"
    model = load(folder, case["base"], torch.float32 if eight_bit else torch.float64, start)
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = bitsandbytes.optim.AdamW8bit if eight_bit else torch.optim.AdamW
    optimizer = adamw(parameters, lr=case["learning_rate"], betas=(case["adam_beta1"], case["adam_beta2"]),
                      eps=case["adam_epsilon"], weight_decay=case["weight_decay"])
    kind = "constant_with_warmup" if case["lr_scheduler"] == "constant" else case["lr_scheduler"]
    schedule = get_scheduler(kind, optimizer, case.get("warmup_steps", 2), STEPS)
    curve.SEQ_LEN = case.get("seq_len")
    rows = next_fit(records) if case["packing"] else [[r] for r in records]
    windows = chunks(chunks(rows, case["batch_size"]), case["grad_accum"])
    assert "epochs" not in case or -int(-case["epochs"] * len(windows) // 1) == STEPS, len(windows)
    steps = []
    for step in range(STEPS):
        window = windows[step % len(windows)]
        tokens = sum(supervised(r["labels"]) for batch in window for row in batch for r in row)
        optimizer.zero_grad()
        losses = [loss_sum(logits(model, r["input_ids"]), r["labels"]) / tokens for batch in window for row in batch for r in row]
        sum(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, case["max_grad_norm"])
        steps.append({"loss": sum(losses).item(), "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
    return steps, adapter_numbers(model)


def adapter_numbers(model):
    return {k.replace(".default", ""): p.detach() for k, p in model.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    main()
