"""Pre-trains the demo's model: a tokenizer and a small Llama that tells stories, from the text of write_text.py.

    python pretrain.py          # writes src/demo/model/; about a quarter of an hour on one core

No sentence is seen twice but by chance: the text is written as fast as it is read. Seeds are fixed.
"""
import itertools
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from world import ANIMALS, BOYS, COATS, COLORS, GIRLS, JOBS, NATURES, PETS, THINGS
from write_text import documents

MODEL = Path(__file__).resolve().parents[2] / "src" / "demo" / "model"
SPECIAL = PAD, BOS, EOS, USER, ASSISTANT = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
VOCABULARY = 960
CONTEXT = 256
BATCH = 16
STEPS = 1500
WARMUP = 50
RATE = 1e-2, 5e-3
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer()
    model = new_model()
    train(model, batches(tokenizer, seed=1))
    print(f"loss on other text {evaluate(model, batches(tokenizer, seed=2)):.4f}")
    save(model, tokenizer)


def train_tokenizer():
    """Byte-level BPE: any text can be written with it, ours with few tokens, each name and noun with one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [plain(document) for document in itertools.islice(documents(seed=0), 8000)]
    words = " ".join(["", *GIRLS, *BOYS, *PETS, *JOBS, *ANIMALS, *COLORS, *COATS, *NATURES, *THINGS])
    tokenizer.train_from_iterator(text + 3000 * [words], trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL.index(BOS))])
    return tokenizer


def plain(document):
    """A document without its marks."""
    for mark in SPECIAL:
        document = document.replace(mark, " ")
    return document


def new_model():
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initializer_range=0.05,
        **{f"{name}_token_id": SPECIAL.index(token) for name, token in (("pad", PAD), ("bos", BOS), ("eos", EOS))}))


def batches(tokenizer, seed):
    """Endless batches [B, T] of whole documents of like length, padded."""
    source = documents(seed)
    order = torch.Generator().manual_seed(seed)
    while True:
        rows = [tokenizer.encode(d, add_special_tokens=False).ids for d in itertools.islice(source, 32 * BATCH)]
        rows = sorted((row for row in rows if len(row) <= CONTEXT), key=len)
        starts = torch.randperm(len(rows) // BATCH, generator=order) * BATCH
        yield from (padded(rows[start:start + BATCH]) for start in starts.tolist())


def padded(rows):
    width = max(map(len, rows))
    return torch.tensor([row + [SPECIAL.index(PAD)] * (width - len(row)) for row in rows])


def train(model, source):
    """Muon for the linear weights, Adam for embeddings and norms; the rate rises for WARMUP steps and falls along a
    cosine to a twentieth."""
    linear = [p for name, p in model.named_parameters() if "proj" in name]
    others = [p for name, p in model.named_parameters() if "proj" not in name]
    optimizers = [torch.optim.Muon(linear, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98), fused=True)]
    start = time.monotonic()
    for step, batch in zip(range(STEPS), source):
        fall = 0.525 + 0.475 * math.cos(math.pi * step / STEPS)
        for optimizer, rate in zip(optimizers, RATE):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARMUP) * fall
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s", flush=True)


def loss_of(model, batch):
    """Mean loss of a token in a batch; padding and what a user says are not predicted."""
    pad, user, assistant = (SPECIAL.index(token) for token in (PAD, USER, ASSISTANT))
    by_user = (batch == user).cumsum(1) > (batch == assistant).cumsum(1)
    labels = batch.masked_fill(by_user, pad)[:, 1:]
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=pad)


@torch.no_grad()
def evaluate(model, source):
    return sum(loss_of(model, batch).item() for batch in itertools.islice(source, 16)) / 16


def save(model, tokenizer):
    """The folder as transformers knows it: bfloat16 weights, tokenizer, chat template."""
    model.to(torch.bfloat16).save_pretrained(MODEL)
    (MODEL / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")))
    write_json("generation_config.json", {"bos_token_id": SPECIAL.index(BOS), "eos_token_id": SPECIAL.index(EOS),
                                          "pad_token_id": SPECIAL.index(PAD)})
    write_json("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT, "chat_template": TEMPLATE})


def write_json(name, value):
    (MODEL / name).write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
