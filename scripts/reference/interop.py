"""Checks a built qlora-train against the Python stack: `python interop.py BINARY [MODEL...]`.

Makes models of every family with dimensions that the fixtures do not have, and for each asks: does
`eval` compute what transformers and peft compute in float64; does peft load what `train` wrote, and
`train` what peft wrote; are `quantize` and `merge` files that transformers loads, with bitsandbytes'
bytes in them; does a bitsandbytes folder of transformers work as MODEL; do threads, runs and the
store leave every byte of a trained adapter alone? Prints a line a check, fails at the end if one failed.
"""
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CONFIG_MAPPING

from adapters import load_whole
from common import bnb, load, logits, loss_sum
from models import random_weight, write_old_config

SIZES = dict(vocab_size=1000, num_hidden_layers=2, max_position_embeddings=256, bos_token_id=None,
             eos_token_id=None, pad_token_id=None, tie_word_embeddings=False)
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# Name: configuration, type of the file, largest shard.
MODELS = {
    "llama-biases": (dict(type="llama", hidden_size=96, intermediate_size=224, num_attention_heads=4, num_key_value_heads=2,
        head_dim=24, attention_bias=True, mlp_bias=True, rope_parameters=PLAIN), torch.float32, "5GB"),
    "llama-sharded": (dict(type="llama", hidden_size=160, intermediate_size=300, num_attention_heads=2, num_key_value_heads=1,
        head_dim=80, tie_word_embeddings=True, rope_parameters=PLAIN), torch.float16, "300KB"),
    "mistral": (dict(type="mistral", hidden_size=128, intermediate_size=224, num_attention_heads=8, num_key_value_heads=4,
        head_dim=24, sliding_window=7, rope_parameters=PLAIN), torch.bfloat16, "200KB"),
    "qwen2": (dict(type="qwen2", hidden_size=96, intermediate_size=300, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True,
        rope_parameters=PLAIN), torch.float16, "5GB"),
    "qwen3": (dict(type="qwen3", hidden_size=160, intermediate_size=224, num_attention_heads=5, num_key_value_heads=1,
        head_dim=24, attention_bias=True, rope_parameters=PLAIN), torch.float32, "5GB"),
    "phi3": (dict(type="phi3", hidden_size=128, intermediate_size=300, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=9, rope_parameters={**PLAIN, "partial_rotary_factor": 0.5}), torch.bfloat16, "5GB"),
    "gemma": (dict(type="gemma", hidden_size=96, intermediate_size=224, num_attention_heads=2, num_key_value_heads=1,
        head_dim=256, tie_word_embeddings=True, rope_parameters=PLAIN), torch.float32, "5GB"),
    "gemma2": (dict(type="gemma2", hidden_size=96, intermediate_size=300, num_attention_heads=3, num_key_value_heads=3,
        head_dim=32, query_pre_attn_scalar=40, sliding_window=5, tie_word_embeddings=True, rope_parameters=PLAIN),
        torch.bfloat16, "5GB"),
    "gemma3": (dict(type="gemma3_text", hidden_size=160, intermediate_size=224, num_hidden_layers=7, num_attention_heads=2,
        num_key_value_heads=1, head_dim=80, sliding_window=6, tie_word_embeddings=True,
        rope_parameters={"sliding_attention": PLAIN, "full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
        torch.bfloat16, "5GB"),
}
# Adapters as peft users make them; a model takes one after the other.
LORAS = [
    dict(r=4, lora_alpha=8, target_modules="all-linear"),
    dict(r=6, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "v_proj", "qkv_proj"]),
    dict(r=8, lora_alpha=5, rank_pattern={"o_proj": 3, "layers.1.mlp.down_proj": 16}, alpha_pattern={"mlp.down_proj": 24, "down_proj": 3},
         target_modules="all-linear"),
    dict(r=16, lora_alpha=32, layers_to_transform=[1], target_modules=["o_proj", "down_proj"]),
    dict(r=64, lora_alpha=64, target_modules="all-linear"),
]
LENGTHS = (40, 17, 5, 2)
TRAINING = ["--no-shuffle", "--max-steps", "3", "--grad-accum", "2", "--learning-rate", "1e-3"]
failures = []


def main():
    binary, *names = sys.argv[1:]
    with TemporaryDirectory() as work:
        for i, name in enumerate(MODELS):
            if not names or name in names:
                try:
                    check_model(Path(binary).resolve(), Path(work) / name, name, LORAS[i % len(LORAS)], torch.Generator().manual_seed(i))
                except Exception as error:
                    failures.append(name)
                    print(name, "STOPPED:", error)
                shutil.rmtree(Path(work) / name, ignore_errors=True)
    sys.exit(f"failed: {failures}" if failures else 0)


def check_model(binary, work, name, lora, seed):
    def run(*words):
        done = subprocess.run([binary, *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def losses(model, base, *words):
        out = run("eval", model, data, "--quantization", base, "--dtype", "f32", "--json", "--per-record", *words)
        return [r["loss_sum"] for r in json.loads(out)["results"][-1]["records"]]

    def train(out, *words, start=None, dtype="f32"):
        run(start or model, data, "--output-dir", work / out, *TRAINING, "--dtype", dtype, *words)
        return work / out

    def note(what, distance, limit):
        if not distance <= limit:
            failures.append(f"{name}: {what}")
        print(f"{name}: {what}: {distance:.2g}{'' if distance <= limit else f' WRONG, allowed {limit}'}", flush=True)

    model, data = work / "model", work / "data.jsonl"
    write_model(model, work / "model-v4", name, seed)
    records = [record(length, seed) for length in LENGTHS]
    data.write_text("".join(json.dumps(r) + "\n" for r in records))
    theirs = write_adapter(model, work / "peft", lora, seed)
    fresh = train("fresh", "--quantization", "none")
    trained = train("trained", "--quantization", "nf4", "--init-adapter", theirs)
    for base in ("none", "nf4"):
        for label, adapter in (("no adapter", None), ("peft's adapter", theirs), ("own adapter", fresh), ("continued adapter", trained)):
            words = ["--adapter", adapter] if adapter else []
            true = torch_losses(model, base, adapter, records)
            note(f"eval {base} {label}", distance(losses(model, base, *words), true), 1e-5)
    note("old config", distance(losses(work / "model-v4", "none"), losses(model, "none")), 0)
    note("quiet load by peft", sum(len(peft_warnings(model, a)) for a in (fresh, trained)), 0)

    run("quantize", model, "--output", work / "store")
    note("store's bytes not as bitsandbytes", unlike_bitsandbytes(work / "store", model), 0)
    note("store's losses", distance(losses(work / "store", "nf4"), losses(model, "nf4")), 0)
    note("adapter from store", unlike(train("from-store", "--init-adapter", theirs, start=work / "store"), trained), 0)
    write_bitsandbytes(model, work / "bnb")
    note("bitsandbytes folder", distance(losses(work / "bnb", "nf4", "--adapter", theirs), losses(model, "nf4", "--adapter", theirs)), 1e-5)

    for base in ("none", "nf4"):
        run("merge", model, "--adapter", theirs, "--output", work / f"merged-{base}", "--quantization", base)
        note(f"merge {base}", merge_error(work / f"merged-{base}", model, base, theirs), 2**-8)

    for dtype in ("f32", "bf16"):
        outs = [train(f"{dtype}-{n}-{i}", "--init-adapter", theirs, "--threads", n, dtype=dtype) for i, n in enumerate((1, 2, 3, 8, 2))]
        note(f"threads and runs {dtype}", sum(unlike(o, outs[0]) for o in outs), 0)


def write_model(folder, old, name, seed):
    settings, dtype, shard = MODELS[name]
    settings = {**SIZES, **settings}
    config = CONFIG_MAPPING[settings.pop("type")](**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for key, p in sorted(model.named_parameters()):
        p.data = random_weight(key, p, config.model_type.startswith("gemma"), seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    write_old_config(folder, config)
    shutil.copytree(folder, old)
    (old / "config_v4.json").rename(old / "config.json")


def record(length, seed):
    ids = torch.randint(0, SIZES["vocab_size"], (length,), generator=seed).tolist()
    prompt = length // 3
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def write_adapter(model, folder, lora, seed):
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    names = {n.rsplit(".")[-1] for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    if not isinstance(lora["target_modules"], str):
        lora = {**lora, "target_modules": [n for n in lora["target_modules"] if n in names]}
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    for key, p in sorted(adapted.named_parameters()):
        if "lora_" in key:
            p.data = torch.randn(p.shape, generator=seed) * (p.shape[1] ** -0.5 if "lora_A" in key else 0.1)
    adapted.save_pretrained(folder)
    return folder


@torch.no_grad()
def torch_losses(model, base, adapter, records):
    loaded = load_whole(model, base, adapter) if adapter else load(model, base)
    return [loss_sum(logits(loaded, r["input_ids"]), r["labels"]).item() for r in records]


def distance(own, true):
    return max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(own, true, strict=True))


def peft_warnings(model, adapter):
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(base, adapter)
    return [str(w.message) for w in heard if "key" in str(w.message)]


def unlike(folder, other):
    return int((folder / "adapter_model.safetensors").read_bytes() != (other / "adapter_model.safetensors").read_bytes())


def unlike_bitsandbytes(store, model):
    """How many of the tensors that transformers loads from the store are not those that bitsandbytes makes."""
    loaded = AutoModelForCausalLM.from_pretrained(store, device_map="cpu")
    plain = AutoModelForCausalLM.from_pretrained(model)
    wrong = 0
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = loaded.get_submodule(name).weight
            codes, state = bnb.quantize_4bit(module.weight.data.reshape(-1), blocksize=64, quant_type="nf4", compress_statistics=True)
            stored = weight.quant_state
            same = torch.equal(weight.data.reshape(-1), codes.reshape(-1)) and torch.equal(stored.absmax, state.absmax)
            same &= torch.equal(stored.state2.absmax, state.state2.absmax) and torch.equal(stored.code, state.code)
            same &= stored.offset.item() == state.offset.item() and torch.equal(stored.state2.code, state.state2.code)
            same &= tuple(stored.shape) == tuple(module.weight.shape)
            wrong += not same
    for name, p in plain.named_parameters():
        linear = isinstance(plain.get_submodule(name.rsplit(".", 1)[0]), torch.nn.Linear)
        if not (linear and name.endswith("weight") and not name.startswith("lm_head")):
            wrong += not torch.equal(loaded.get_parameter(name).to(p.dtype), p)
    return wrong


def write_bitsandbytes(model, out):
    dtype = next(iter(load_file(next(model.glob("*.safetensors"))).values())).dtype
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(model, quantization_config=settings, dtype=dtype, device_map="cpu").save_pretrained(out)


@torch.no_grad()
def merge_error(folder, model, base, adapter):
    """The greatest relative error of a weight; rounding to bf16 alone makes up to 2**-9."""
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).state_dict()
    true = load(model, base, adapter=adapter).merge_and_unload().state_dict()
    assert own.keys() == true.keys(), own.keys() ^ true.keys()
    return max(((own[k] - true[k]).abs() / (true[k].abs() + 1e-3)).max().item() for k in true)


if __name__ == "__main__":
    main()
