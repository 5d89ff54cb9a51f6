"""A second forward pass of Llama with LoRA, from the formulas alone, in float64 numpy.

It shares with the first one only the reading of files and the NF4 values, and so shows that
`common.exact` leaves no rounding to float32 in transformers.
"""
import json

import numpy as np
import torch
from safetensors.torch import load_file

from common import nf4


def own_logits(folder, base, ids):
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    lora = load_file(folder / "adapter" / "adapter_model.safetensors")
    eps, heads, kv_heads, d = (config[k] for k in ("rms_norm_eps", "num_attention_heads", "num_key_value_heads", "head_dim"))

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * array(weights[name])

    def linear(x, name):
        w = weights[f"{name}.weight"]
        a, b = (array(lora[f"base_model.model.{name}.lora_{side}.weight"]) for side in "AB")
        return x @ array(nf4(w) if base == "nf4" else w).T + 2.0 * (x @ a.T) @ b.T

    def attention(x, layer):
        split = lambda y, n: y.reshape(len(ids), n, d).transpose(1, 0, 2)
        q, k, v = (split(linear(x, f"{layer}.self_attn.{p}_proj"), n) for p, n in zip("qkv", (heads, kv_heads, kv_heads)))
        q, k = rotate(q, frequencies(config, d)), rotate(k, frequencies(config, d))
        k, v = np.repeat(k, heads // kv_heads, 0), np.repeat(v, heads // kv_heads, 0)
        scores = np.where(np.tri(len(ids), dtype=bool), q @ k.transpose(0, 2, 1) / d**0.5, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out = p / p.sum(-1, keepdims=True) @ v
        return linear(out.transpose(1, 0, 2).reshape(len(ids), -1), f"{layer}.self_attn.o_proj")

    def mlp(x, layer):
        gate, up = linear(x, f"{layer}.mlp.gate_proj"), linear(x, f"{layer}.mlp.up_proj")
        return linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")

    x = array(weights["model.embed_tokens.weight"])[ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        x = x + attention(norm(x, f"{layer}.input_layernorm.weight"), layer)
        x = x + mlp(norm(x, f"{layer}.post_attention_layernorm.weight"), layer)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return torch.from_numpy(norm(x, "model.norm.weight") @ array(head).T)


def frequencies(config, d):
    """Llama 3: long waves are stretched by `factor`, short ones stay, a ramp lies between."""
    rope = config["rope_parameters"]
    f = rope["rope_theta"] ** (-np.arange(0, d, 2) / d)
    turns = rope["original_max_position_embeddings"] * f / (2 * np.pi)
    keep = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    keep = np.clip(keep, 0, 1)
    return f * (keep + (1 - keep) / rope["factor"])


def rotate(x, f):
    angle = np.arange(x.shape[1])[:, None] * f
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def array(tensor):
    return tensor.double().numpy()
