"""Loads an adapter with peft and says what it does: `python adapters.py MODEL ADAPTER DATA [--other ADAPTER] [--base nf4]`.

DATA is JSONL with input_ids and labels (attention_mask if padded). Prints one JSON object: the mean
loss over the supervised tokens in float64, and with --other the greatest difference of a logit
between the two adapters. Fails when a tensor of the file finds no place in the model or a place
in the model stays empty.
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open

from common import adapter_gradients, load, logits, loss_sum, supervised


@torch.no_grad()
def main():
    args = arguments()
    records = [unpadded(json.loads(line)) for line in args.data.read_text().splitlines() if line.strip()]
    model = load_whole(args.model, args.base, args.adapter)
    scores = [logits(model, r["input_ids"]) for r in records]
    tokens = sum(supervised(r["labels"]) for r in records)
    total = sum(loss_sum(s, r["labels"]).item() for s, r in zip(scores, records))
    result = {"loss": total / tokens, "supervised_tokens": tokens, "records": len(records)}
    if args.other:
        other = load_whole(args.model, args.base, args.other)
        distances = [(s - logits(other, r["input_ids"])).abs().max().item() for s, r in zip(scores, records)]
        result["max_logit_difference"] = max(distances)
    print(json.dumps(result))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "adapter", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--base", choices=("none", "nf4"), default="none")
    return parser.parse_args()


def unpadded(record):
    labels = record.get("labels", record["input_ids"])
    mask = record.get("attention_mask", [1] * len(labels))
    keep = lambda values: [v for v, m in zip(values, mask, strict=True) if m]
    return {"input_ids": keep(record["input_ids"]), "labels": keep(labels)}


def load_whole(folder, base, adapter):
    model = load(folder, base, adapter=adapter)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        stored, wanted = set(file.keys()), set(adapter_gradients(model))
    assert stored == wanted, f"only in the file: {sorted(stored - wanted)}; only in the model: {sorted(wanted - stored)}"
    return model


if __name__ == "__main__":
    main()
