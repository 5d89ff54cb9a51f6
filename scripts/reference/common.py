"""What the reference scripts share: exact float64 arithmetic in transformers, models, adapters, the loss."""
import contextlib
import json
import os
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read at the first call: bitsandbytes compiles nothing, results do not move
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from bitsandbytes import functional as bnb
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"


class OnlyFloat64(TorchDispatchMode):
    """Fails on any operation that makes a floating-point tensor of another type."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert value.dtype == torch.float64, f"{function} made {value.dtype}"
        return out


def widened(function):
    """`function` with every float32 among its arguments replaced by float64."""

    def call(*args, **kwargs):
        swap = lambda v: torch.float64 if v is torch.float32 else v
        return function(*map(swap, args), **{k: swap(v) for k, v in kwargs.items()})

    return call


@contextlib.contextmanager
def exact():
    """Inside, transformers computes in float64 where it asks for float32: norms, rotary angles and
    their frequencies, softmax. Nothing is rounded to float32 on the way."""
    patched = [(torch.Tensor, "to"), (torch, "arange"), (torch, "tensor"), (torch, "zeros"), (torch.nn.functional, "softmax")]
    saved = [(owner, name, getattr(owner, name)) for owner, name in patched + [(torch.Tensor, "float")]]
    for owner, name in patched:
        setattr(owner, name, widened(getattr(owner, name)))
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        for owner, name, original in saved:
            setattr(owner, name, original)


def arithmetic(dtype):
    return exact() if dtype == torch.float64 else contextlib.nullcontext()


@contextlib.contextmanager
def forward_of(model):
    """Around a forward pass: in a float64 model nothing else than float64 may appear."""
    double = next(model.parameters()).dtype == torch.float64
    with exact() if double else contextlib.nullcontext(), OnlyFloat64() if double else contextlib.nullcontext():
        yield


def nf4(weight):
    """The float32 values that NF4 with blocks of 64 and double quantization gives back.

    Flat, as the format is: for matrices whose rows are 32 or 96 long (no whole number of blocks), the CPU code of
    bitsandbytes 0.50.2 quantizes flat but dequantizes row by row, and gives back other values.
    """
    codes, state = bnb.quantize_4bit(weight.reshape(-1), blocksize=64, quant_type="nf4", compress_statistics=True)
    state.dtype = torch.float32
    return bnb.dequantize_4bit(codes, state).reshape(weight.shape)


def load(folder, base="none", dtype=torch.float64, adapter=None):
    """The model of a folder with its linear weights as they are or (`nf4`) quantized and back."""
    with arithmetic(dtype):
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    weights = {k: v for path in sorted(Path(folder).glob("model*.safetensors")) for k, v in load_file(path).items()}
    if base == "nf4":
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                weights[f"{name}.weight"] = nf4(weights[f"{name}.weight"])
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    assert bool(missing) == config.tie_word_embeddings
    model.tie_weights()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
    return model.train()


def logits(model, ids):
    """One row alone, no padding, no cache. [T, V]"""
    forget_length(model)
    with forward_of(model):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def forget_length(model):
    """Dynamic rope scaling remembers the longest row seen so far; each row counts for itself here."""
    for module in model.modules():
        if hasattr(module, "original_max_seq_len"):
            module.max_seq_len_cached = module.original_max_seq_len
            if hasattr(module, "original_inv_freq"):
                module.inv_freq = module.original_inv_freq.clone()


def supervised(labels):
    return sum(label != -100 for label in labels[1:])


def loss_sum(scores, labels):
    """Sum of the token losses of a row, in float64 or, for bf16 scores, in float32."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return torch.nn.functional.cross_entropy(scores[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum")


def adapter_gradients(model):
    return {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.requires_grad}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
