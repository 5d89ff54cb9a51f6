"""Training curves in float64: tests/fixtures/curve/.

A tiny Llama, two adapters to start from, pre-tokenized records, and the loss, gradient norm and
learning rate of 50 optimizer steps for three ways of feeding them. That the split into
micro-batches, padding and packing change nothing is asserted here.
"""
import json
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, get_cosine_schedule_with_warmup

from common import FIXTURES, forward_of, load, logits, loss_sum, supervised, write_json
from models import random_weight, save_adapter

FOLDER = FIXTURES / "curve"
MODEL = LlamaConfig(
    vocab_size=80, hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=256, tie_word_embeddings=False,
    bos_token_id=None, eos_token_id=None, pad_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
RECORDS, SEQ_LEN, PAD = 65, 64, 0
SETTINGS = {
    "steps": 50, "learning_rate": 2e-3, "lr_scheduler": "cosine", "warmup_steps": 3, "weight_decay": 0.01,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
}
CASES = {
    "plain": {"base": "none", "adapter": "adapter-zero", "batch_size": 2, "grad_accum": 3, "packing": False},
    "nf4": {"base": "nf4", "adapter": "adapter-random", "batch_size": 2, "grad_accum": 3, "packing": False},
    "packed": {"base": "none", "adapter": "adapter-random", "batch_size": 1, "grad_accum": 4, "packing": True, "seq_len": SEQ_LEN},
}


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    seed = torch.Generator().manual_seed(17)
    write_start(seed)
    records = [record(seed) for _ in range(RECORDS)]
    write_lines(FOLDER / "data.jsonl", records)
    write_lines(FOLDER / "data_padded.jsonl", [padded(r, i) for i, r in enumerate(records)])
    curves = {}
    for name, case in CASES.items():
        model, steps = train(case, records)
        curves[name] = {**case, "curve": steps, "f32_drift": drift(model, steps, *train(case, records, torch.float32))}
        if name != "packed":
            save_final(model, name, case["adapter"])
    for batch, accum in ((1, 6), (6, 1)):
        _, other = train({**CASES["plain"], "batch_size": batch, "grad_accum": accum}, records)
        assert_equal(curves["plain"]["curve"], other)
    check_rows_alone(records)
    write_json(FOLDER / "curve.json", {"settings": SETTINGS, "cases": curves})
    for path in FOLDER.rglob("*.safetensors"):
        path.chmod(0o644)
    for name, case in curves.items():
        print(name, [round(s["loss"], 3) for s in case["curve"][::7]], [round(s["grad_norm"], 2) for s in case["curve"][::7]])


def write_start(seed):
    model = AutoModelForCausalLM.from_config(MODEL, dtype=torch.float32)
    for name, p in sorted(model.named_parameters()):
        p.data = random_weight(name, p, False, seed)
    model.save_pretrained(FOLDER / "model")
    for kind in ("zero", "random"):  # B as PEFT starts it, or as after some training
        fresh = AutoModelForCausalLM.from_pretrained(FOLDER / "model")
        adapted = get_peft_model(fresh, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, p in sorted(adapted.named_parameters()):
            if "lora_A" in name:
                p.data = torch.randn(p.shape, generator=seed) * p.shape[1] ** -0.5
            elif "lora_B" in name and kind == "random":
                p.data = torch.randn(p.shape, generator=seed) * 0.05
        save_adapter(adapted, FOLDER / f"adapter-{kind}", "model")


def record(seed):
    """A sequence that follows a rule three times out of four, so that there is something to learn."""
    length = int(torch.randint(5, 41, (1,), generator=seed))
    ids = [int(torch.randint(1, MODEL.vocab_size, (1,), generator=seed))]
    while len(ids) < length:
        surprise = torch.rand(1, generator=seed) < 0.25
        ids.append(int(torch.randint(1, MODEL.vocab_size, (1,), generator=seed)) if surprise else (ids[-1] * 3 + 7) % 79 + 1)
    prompt = int(torch.randint(0, length - 2, (1,), generator=seed))  # 0: every token but the first is a target
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def padded(record, index):
    """The same record with 1 to 4 pads, on the left of every second one, on the right of the others."""
    n, t = index % 4 + 1, len(record["input_ids"])
    pads = {"input_ids": [PAD] * n, "labels": [-100] * n, "attention_mask": [0] * n}
    tokens = {**record, "attention_mask": [1] * t}
    return {k: pads[k] + tokens[k] if index % 2 else tokens[k] + pads[k] for k in pads}


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def train(case, records, dtype=torch.float64):
    model = load(FOLDER / "model", case["base"], dtype, FOLDER / case["adapter"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    s = SETTINGS
    optimizer = torch.optim.AdamW(parameters, lr=s["learning_rate"], betas=(s["adam_beta1"], s["adam_beta2"]),
                                  eps=s["adam_epsilon"], weight_decay=s["weight_decay"])
    schedule = get_cosine_schedule_with_warmup(optimizer, s["warmup_steps"], s["steps"])
    steps, windows = [], windows_of_epoch(case, records)
    for step in range(s["steps"]):
        window = windows[step % len(windows)]
        tokens = sum(supervised(r["labels"]) for batch in window for r in batch)
        optimizer.zero_grad()
        losses = [micro_batch_loss(model, batch, case["packing"]) / tokens for batch in window]
        sum(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, s["max_grad_norm"])
        steps.append({"loss": sum(losses).item(), "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0],
                      "supervised_tokens": tokens})
        optimizer.step()
        schedule.step()
    return model, steps


def windows_of_epoch(case, records):
    """Micro-batches (lists of records) grouped into optimizer steps; the last group may be short."""
    batches = next_fit(records) if case["packing"] else chunks(records, case["batch_size"])
    return chunks(batches, case["grad_accum"])


def chunks(items, n):
    return [items[i : i + n] for i in range(0, len(items), n)]


def next_fit(records):
    """Rows of at most SEQ_LEN tokens, in file order: what does not fit opens the next row."""
    rows = [[]]
    for r in records:
        if sum(len(other["input_ids"]) for other in rows[-1]) + len(r["input_ids"]) > SEQ_LEN:
            rows.append([])
        rows[-1].append(r)
    return rows


def micro_batch_loss(model, records, packing):
    scores = packed_scores(model, records) if packing else padded_scores(model, records)
    return sum(loss_sum(s, r["labels"]) for s, r in zip(scores, records))


def padded_scores(model, records):
    longest = max(len(r["input_ids"]) for r in records)
    pad = lambda values: values + [PAD] * (longest - len(values))
    ids = torch.tensor([pad(r["input_ids"]) for r in records])
    mask = torch.tensor([pad([1] * len(r["input_ids"])) for r in records])
    with forward_of(model):
        scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [s[: len(r["input_ids"])] for s, r in zip(scores, records)]


def packed_scores(model, records):
    """One row, positions restarted, attention within each record only."""
    lengths = [len(r["input_ids"]) for r in records]
    ids = torch.tensor([[i for r in records for i in r["input_ids"]]])
    positions = torch.tensor([[p for n in lengths for p in range(n)]])
    allowed = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]).bool()
    mask = torch.zeros(1, 1, len(allowed), len(allowed), dtype=next(model.parameters()).dtype).masked_fill(~allowed, float("-inf"))
    with forward_of(model):
        scores = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
    return scores.split(lengths)


def save_final(model, name, start):
    """The trained numbers beside the config they started with."""
    (FOLDER / f"final-{name}").mkdir()
    shutil.copy(FOLDER / start / "adapter_config.json", FOLDER / f"final-{name}")
    numbers = {k.replace(".default", ""): p.detach().float() for k, p in model.named_parameters() if p.requires_grad}
    save_file(numbers, FOLDER / f"final-{name}" / "adapter_model.safetensors", metadata={"format": "pt"})


def drift(model, steps, other_model, other_steps):
    """How far torch in float32 strays from float64 over the whole run (greatest absolute differences)."""
    pairs = list(zip(steps, other_steps, strict=True))
    result = {key: max(abs(a[key] - b[key]) for a, b in pairs) for key in ("loss", "grad_norm")}
    pairs = zip(model.parameters(), other_model.parameters(), strict=True)
    result["adapter"] = max((a - b).abs().max().item() for a, b in pairs if a.requires_grad)
    return result


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert a["supervised_tokens"] == b["supervised_tokens"] and a["learning_rate"] == b["learning_rate"]
        assert abs(a["loss"] - b["loss"]) < 1e-9 and abs(a["grad_norm"] - b["grad_norm"]) < 1e-9, (a, b)


@torch.no_grad()
def check_rows_alone(records):
    """Neither packing nor padding on the right or left shows in the scores of a record."""
    model = load(FOLDER / "model", adapter=FOLDER / "adapter-random")
    alone = [logits(model, r["input_ids"]) for r in records]
    packed = [s for row in next_fit(records) for s in packed_scores(model, row)]
    right = [s for batch in chunks(records, 7) for s in padded_scores(model, batch)]
    left = []
    for i, r in enumerate(records):
        p = padded(r, i)
        mask = torch.tensor([p["attention_mask"]])
        with forward_of(model):
            scores = model(input_ids=torch.tensor([p["input_ids"]]), attention_mask=mask, use_cache=False).logits
        left.append(scores[0][mask[0].bool()])
    for others in (packed, right, left):
        for a, b in zip(alone, others, strict=True):
            assert (a - b).abs().max() < 1e-10


if __name__ == "__main__":
    main()
