"""A tiny random model of each family with an adapter, and what float64 makes of them.

Writes tests/fixtures/models/NAME/: the model, its config in the older form too, adapter/ (PEFT),
reference.safetensors and reference.json. Give names to remake only those: `python models.py llama gemma3`.
"""
import json
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

from check_llama import own_logits
from common import FIXTURES, adapter_gradients, load, logits, loss_sum, supervised, write_json

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, tie_word_embeddings=False,
)
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# Row widths of 100 and 32 are no multiples of 64: blocks of codes straddle rows.
MODELS = {
    "llama": dict(type="llama", intermediate_size=100, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
    "llama2": dict(type="llama", num_attention_heads=2, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "llama-dynamic": dict(type="llama", num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}),
    "mistral": dict(type="mistral", sliding_window=6, rope_parameters=PLAIN),
    "qwen2": dict(type="qwen2", head_dim=None, num_attention_heads=2, num_key_value_heads=1, file_dtype=torch.float32,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                         "original_max_position_embeddings": 512}),
    "qwen3": dict(type="qwen3", tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "phi3": dict(type="phi3", head_dim=None, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
                         "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                         "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0]}),
    "gemma": dict(type="gemma", num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=PLAIN),
    "gemma2": dict(type="gemma2", tie_word_embeddings=True, query_pre_attn_scalar=20, sliding_window=6,
        attn_logit_softcapping=4.0, final_logit_softcapping=5.0, rope_parameters=PLAIN),
    "gemma3": dict(type="gemma3_text", num_hidden_layers=3, tie_word_embeddings=True, query_pre_attn_scalar=20,
        sliding_window=6, sliding_window_pattern=2,
        rope_parameters={"sliding_attention": PLAIN,
                         "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}}),
}
NOTES = {
    "llama-dynamic": "Frequencies follow the length of the row itself, in training and at every greedy step.",
    "phi3": "Rows longer than 16 take long_factor, the others short_factor; greedy stays within 16.",
    "gemma": "float64 multiplies embeddings by the unrounded sqrt(hidden_size); torch bf16 rounds that factor.",
    "gemma2": "As gemma: the embedding factor is unrounded in float64.",
    "gemma3": "As gemma: the embedding factor is unrounded in float64.",
    "qwen2": "Weights are no bf16 numbers; the bf16 error contains their rounding.",
}
LENGTHS = (19, 11, 5)
NEW_TOKENS = 12


def main():
    for name in sys.argv[1:] or MODELS:
        folder = FIXTURES / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        seed = torch.Generator().manual_seed(list(MODELS).index(name))
        write_model(folder, dict(MODELS[name]), seed)
        write_adapter(folder, seed)
        write_reference(folder, name, seed)


def write_model(folder, overrides, seed):
    file_dtype = overrides.pop("file_dtype", torch.bfloat16)
    settings = {**SIZES, **overrides}
    config = CONFIG_MAPPING[settings.pop("type")](**{k: v for k, v in settings.items() if v is not None or "token" in k})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter_name, p in sorted(model.named_parameters()):
        p.data = random_weight(parameter_name, p, config.model_type.startswith("gemma"), seed)
    model.to(file_dtype).save_pretrained(folder)
    write_old_config(folder, config)


def write_old_config(folder, config):
    """The same model as transformers 4 wrote it, and as most published folders still have it."""
    old = json.loads((folder / "config.json").read_text())
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    old.pop("layer_types", None)
    old["torch_dtype"] = old.pop("dtype")
    del old["transformers_version"]
    old["rope_theta"] = rope.pop("rope_theta")
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        old["partial_rotary_factor"] = config.rope_parameters["partial_rotary_factor"]
    rope["type"] = rope["rope_type"]  # the older of its two names
    if config.model_type not in ("llama", "gemma3_text"):
        del rope["rope_type"]
    old["rope_scaling"] = None if rope["type"] == "default" else rope
    write_json(folder / "config_v4.json", old)
    again = type(config).from_dict(old)
    if config.model_type == "gemma3_text":
        again.rope_parameters["full_attention"].pop("type", None)
    else:
        again.rope_parameters.pop("type", None)
    for key in ("rope_parameters", "layer_types"):
        assert getattr(again, key, None) == getattr(config, key, None), (key, getattr(again, key), getattr(config, key))


def random_weight(name, p, gemma, seed):
    """Sizes as in trained models: activations near 1, logits of a few units, norms away from 1."""
    noise = torch.randn(p.shape, generator=seed)
    if "norm" in name:
        return 0.25 * noise if gemma else 1 + 0.25 * noise
    if p.dim() == 1:
        return 0.3 * noise
    return noise * 1.5 / p.shape[1] ** 0.5


def write_adapter(folder, seed):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:  # bf16 numbers, so that no rounding of the adapter counts as error
            scale = p.shape[1] ** -0.5 if "lora_A" in name else 0.15
            p.data = (torch.randn(p.shape, generator=seed) * scale).bfloat16().float()
    save_adapter(model, folder / "adapter", folder.name)


def save_adapter(model, folder, base_name):
    """`base_name` instead of the path of the machine that wrote it; no model card."""
    model.peft_config["default"].base_model_name_or_path = base_name
    model.peft_config["default"].target_modules = sorted(model.peft_config["default"].target_modules)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()


def write_reference(folder, name, seed):
    rows = [row(length, seed) for length in LENGTHS]
    tensors, reference = {}, {"rows": rows, "bases": {}, "tolerance notes": NOTES.get(name, "")}
    for base in ("none", "nf4"):
        true = measure(folder, base, torch.float64, rows)
        rough = measure(folder, base, torch.bfloat16, rows)
        for i, scores in enumerate(true["logits"]):
            tensors[f"{base}.logits.{i}"] = scores.float()
        for key, gradient in true["gradients"].items():
            tensors[f"{base}.grad.{key}"] = gradient.float()
        reference["bases"][base] = {"loss": true["loss"], "bf16_error": errors(true, rough), **greedy(folder, base, rows[0])}
        if name == "llama":
            check_independently(folder, base, rows, true["logits"])
    save_file(tensors, folder / "reference.safetensors")
    write_json(folder / "reference.json", reference)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    print(name, size // 1000, "kB", "logits", round(true["logits"][0].std().item(), 2), reference["bases"]["none"]["greedy_margin"])


def row(length, seed):
    ids = torch.randint(3, SIZES["vocab_size"], (length,), generator=seed).tolist()
    hidden = torch.rand(length, generator=seed) < 0.3
    return {"input_ids": ids, "labels": [-100 if h else i for i, h in zip(ids, hidden.tolist())]}


def measure(folder, base, dtype, rows):
    model = load(folder, base, dtype, folder / "adapter")
    tokens = sum(supervised(r["labels"]) for r in rows)
    result = {"logits": [], "loss": 0.0, "gradients": {}}
    for r in rows:
        model.zero_grad()
        scores = logits(model, r["input_ids"])
        loss = loss_sum(scores, r["labels"]) / tokens
        loss.backward()
        result["logits"].append(scores.detach())
        result["loss"] += loss.item()
        for key, gradient in adapter_gradients(model).items():
            wide = gradient.double() if dtype == torch.float64 else gradient.float()
            result["gradients"][key] = result["gradients"].get(key, 0) + wide
    return result


def errors(true, rough):
    """Greatest absolute error, and the same as a share of the greatest true value."""

    def error(a, b):
        worst = (a.double() - b.double()).abs().max().item()
        return {"abs": worst, "scaled": worst / a.abs().max().item()}

    return {
        "logits": error(torch.cat(true["logits"]), torch.cat(rough["logits"])),
        "loss": abs(true["loss"] - rough["loss"]),
        "gradients": {k: error(g, rough["gradients"][k]) for k, g in true["gradients"].items()},
    }


@torch.no_grad()
def greedy(folder, base, row):
    """Tokens of the model without adapter, and how clear the closest decision was."""
    model, ids, margin = load(folder, base).eval(), row["input_ids"][:4], float("inf")
    for _ in range(NEW_TOKENS):
        best = logits(model, ids)[-1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        ids = ids + [best.indices[0].item()]
    return {"greedy_prompt": ids[:4], "greedy": ids[4:], "greedy_margin": margin}


def check_independently(folder, base, rows, scores):
    for r, expected in zip(rows, scores):
        difference = (own_logits(folder, base, r["input_ids"]) - expected).abs().max().item()
        print("own forward", base, "differs by", difference)
        assert difference < 1e-10


if __name__ == "__main__":
    main()
