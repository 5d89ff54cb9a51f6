"""Fine-tunes the demo's model with peft on its NF4 base: what the demo can be expected to reach.

    python check_learning.py [STEPS [RATE [RANK]]]

Prints the loss of the answers in valid.jsonl and how many of them come out letter for letter, before and after.
"""
import json
import random
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "reference"))
from common import load  # noqa: E402

DATA = HERE.parents[1] / "src" / "demo"
IGNORED = -100
BATCH = 16
SHOWN = 2


def main(steps=300, rate=5e-3, rank=16):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model", padding_side="left")
    train, valid = records("train.jsonl"), records("valid.jsonl")
    model = load(DATA / "model", base="nf4", dtype=torch.float32)
    report("before", model, tokenizer, valid)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    fine_tune(model, [tokens(tokenizer, record) for record in train], steps, rate)
    report("after", model, tokenizer, valid)


def records(name):
    return [json.loads(line)["messages"] for line in (DATA / name).read_text().splitlines()]


def tokens(tokenizer, messages):
    """Ids and labels of a record: the answer and the end token after it are supervised."""
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return out["input_ids"], [t if m else IGNORED for t, m in zip(out["input_ids"], out["assistant_masks"])]


def fine_tune(model, rows, steps, rate):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, max(1, steps * 3 // 100))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw, start, seen = random.Random(0), time.process_time(), 0
    for step in range(steps):
        batch = draw.sample(rows, BATCH)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        (warmup if step < steps * 3 // 100 else cosine).step()
        seen += sum(len(ids) for ids, _ in batch)
        if step % 20 == 0:
            print(f"step {step}  loss {loss.item():.4f}", flush=True)
    print(f"{steps} steps, {seen} tokens, {time.process_time() - start:.0f} CPU seconds")


def loss_of(model, batch):
    """Mean loss of the supervised tokens of a batch, rows padded on the right."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in batch])
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


@torch.no_grad()
def report(when, model, tokenizer, valid):
    model.eval()
    loss = loss_of(model, [tokens(tokenizer, messages) for messages in valid]).item()
    answers = generate(model, tokenizer, [messages[:1] for messages in valid])
    exact = sum(answer == messages[1]["content"] for answer, messages in zip(answers, valid))
    print(f"{when}: loss {loss:.4f}, exact {exact} of {len(valid)}")
    for messages, answer in list(zip(valid, answers))[:SHOWN]:
        print(f"  > {messages[0]['content']}\n{answer}\n")
    model.train()


def generate(model, tokenizer, prompts):
    """Greedy answers up to the end token."""
    inputs = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True, return_tensors="pt",
                                           padding=True)
    out = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=120,
                         do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, float, int), sys.argv[1:])))
