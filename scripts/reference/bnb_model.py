"""Writes a model folder as transformers with bitsandbytes stores it: `python bnb_model.py MODEL OUT`.

NF4, blocks of 64, double quantization. `llama-bnb` of the fixtures comes from
`python bnb_model.py ../../tests/fixtures/models/llama ../../tests/fixtures/models/llama-bnb`.
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from common import bnb, nf4


def main(source, out):
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.bfloat16, device_map="cpu")
    check(model, load_file(source / "model.safetensors"))
    model.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)


def check(model, weights):
    """What transformers quantized on loading is what `nf4` makes of the file's weights."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            state = module.weight.quant_state
            state.dtype, kept = torch.float32, state.dtype
            values = bnb.dequantize_4bit(module.weight.data, state).reshape(state.shape)
            state.dtype = kept
            assert torch.equal(values, nf4(weights[f"{name}.weight"].bfloat16())), name


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
