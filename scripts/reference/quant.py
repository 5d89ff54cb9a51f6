"""Vectors of bitsandbytes' 4-bit quantization and 8-bit AdamW: tests/fixtures/quant.safetensors.

The 4-bit arrays come out of bitsandbytes on the CPU; the rule is stated here once more in numpy
(`check_4bit`) and must agree bit for bit. The 8-bit arrays follow the exact search of its CUDA
kernels (`nearest`), because its CPU code only approximates it; the distance between the two is
asserted or recorded. Names of the arrays: see tests/fixtures/README.md.
"""
import json

import bitsandbytes as bnb
import numpy as np
import torch
from bitsandbytes import functional as F
from safetensors.torch import save_file

from common import FIXTURES

STEPS_KEPT = [1, 3, 10]
ADAM = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "steps": 10, "steps_kept": STEPS_KEPT, "weight_decays": [0.0, 0.01]}


def midpoints(kind):
    code = F.get_4bit_type(kind, device="cpu").sort().values
    return (code[:-1] + code[1:]) / 2


def inputs():
    """Name -> tensor. `big` is the only one whose 257 + 1 scales fill more than one nested block."""
    g = torch.Generator().manual_seed(7)
    cases = {f"n{n}": torch.randn(n, generator=g) * 0.05 for n in (1, 63, 64, 65, 255, 257)}
    cases["n257_bf16"] = (torch.randn(257, generator=g) * 0.05).bfloat16()
    for kind in ("nf4", "fp4"):  # scale 1, every value on a boundary, or one f32 step beside it
        m = midpoints(kind)
        up, down = torch.nextafter(m, m + 1), torch.nextafter(m, m - 1)
        cases[f"ties_{kind}"] = torch.cat([m, up, down, torch.ones(64 - 45)])
        cases[f"ties_scaled_{kind}"] = torch.cat([m * 0.37, -m * 0.37, torch.full((34,), -0.37)])
    zeros = torch.randn(64 * 4 + 10, generator=g)
    zeros[64:192] = 0
    zeros[256:] = 0  # the short last block is zero too
    cases["zero_blocks"] = zeros
    cases["all_zero"] = torch.zeros(128)
    outlier = torch.randn(192, generator=g) * 1e-3
    outlier[100] = -40.0
    cases["outlier"] = outlier
    cases["tiny"] = torch.randn(70, generator=g) * 1e-30
    cases["matrix"] = (torch.randn(48, 172, generator=g) * 0.1).bfloat16()
    cases["big"] = (torch.randn(64 * 257 + 5, generator=g) * torch.rand(64 * 257 + 5, generator=g)).bfloat16()
    return cases


def check_4bit(w, kind, codes, absmax):
    """The NF4 / FP4 rule, in numpy, bit for bit."""
    x = w.float().numpy().reshape(-1)
    full = len(x) // 64 * 64
    floor = np.float32(1e-38)
    scale = np.abs(x[:full].reshape(-1, 64)).max(1, initial=0)
    scaled = (x[:full].reshape(-1, 64) * (np.float32(1) / np.maximum(scale, floor))[:, None]).reshape(-1)
    if full < len(x):
        last = np.maximum(np.abs(x[full:]).max(), floor)
        scale, scaled = np.append(scale, last), np.append(scaled, x[full:] / last)
    order = F.get_4bit_type(kind, device="cpu").argsort().numpy()
    q = order[np.searchsorted(midpoints(kind).numpy(), np.clip(scaled, -1, 1), side="left")]
    if len(q) % 2:  # the padding value is x = 0
        q = np.append(q, order[np.searchsorted(midpoints(kind).numpy(), 0.0)])
    assert np.array_equal(scale.astype(np.float32), absmax.numpy()), "absmax"
    assert np.array_equal((q[::2] << 4 | q[1::2]).astype(np.uint8), codes.numpy().reshape(-1)), "codes"


def nearest(x, table):
    """Blocks of 256: x * (1 / absmax), then the nearest entry; a tie takes the lower, a zero block code 0.

    bitsandbytes' CUDA kernels search the table exactly; its CPU code looks the nearest entry up by
    the upper 16 bits of x and so can miss it by 3.1e-5 of the block's maximum. Where the two
    differ, this is the rule.
    """
    x, table = x.numpy().reshape(-1), table.numpy()
    boundaries = (table[:-1] + table[1:]) * np.float32(0.5)
    codes, absmax = np.zeros(len(x), np.uint8), np.zeros(-(-len(x) // 256), np.float32)
    for b in range(len(absmax)):
        block = x[b * 256 : (b + 1) * 256]
        absmax[b] = np.abs(block).max()
        if absmax[b]:
            scaled = block * (np.float32(1) / absmax[b])
            codes[b * 256 : (b + 1) * 256] = np.searchsorted(boundaries, scaled, side="left")
    return torch.from_numpy(codes), torch.from_numpy(absmax)


def table_values(codes, absmax, table):
    return table[codes.long()] * absmax.repeat_interleave(256)[: len(codes)]


def four_bit(out):
    for name, w in inputs().items():
        out[f"{name}.input"] = w
        small = w.numel() < 1000
        for kind in ("nf4", "fp4"):
            codes, plain = F.quantize_4bit(w, blocksize=64, quant_type=kind)
            codes2, nested = F.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=True)
            assert torch.equal(codes, codes2)
            check_4bit(w, kind, codes, plain.absmax)
            expected = nearest(plain.absmax - nested.offset, nested.state2.code)
            assert torch.equal(expected[0], nested.absmax) and torch.equal(expected[1], nested.state2.absmax), name
            out[f"{name}.{kind}.codes"] = codes.flatten()
            out[f"{name}.absmax"] = plain.absmax
            out[f"{name}.nested.codes"] = nested.absmax
            out[f"{name}.nested.absmax"] = nested.state2.absmax
            out[f"{name}.nested.offset"] = nested.offset.reshape(1)
            dequantized = dequantize(codes, nested)
            if small or kind == "nf4":
                out[f"{name}.{kind}.nested.f32"] = dequantized
            if small or name == "matrix":
                bf16 = dequantize(codes, nested, torch.bfloat16)
                assert torch.equal(bf16, dequantized.bfloat16())
                out[f"{name}.{kind}.nested.bf16"] = bf16
            if small:
                out[f"{name}.{kind}.f32"] = dequantize(codes, plain)
                out[f"{name}.{kind}.bf16"] = dequantize(codes, plain, torch.bfloat16)


def dequantize(codes, state, dtype=torch.float32):
    state.dtype = dtype
    return F.dequantize_4bit(codes, state).reshape(state.shape)


def eight_bit(out):
    """The tables, and how a value falls onto them: random, and on or beside every midpoint."""
    g = torch.Generator().manual_seed(8)
    for name, signed in (("signed", True), ("unsigned", False)):
        table = F.create_dynamic_map(signed=signed)
        mid = (table[:-1] + table[1:]) / 2
        x = torch.randn(300, generator=g) * 3
        x = torch.cat([mid, torch.ones(1), x if signed else x.abs(), torch.zeros(300)])
        codes, absmax = nearest(x, table)
        values = table_values(codes, absmax, table)
        bnb_codes, state = F.quantize_blockwise(x, code=table, blocksize=256)
        assert torch.equal(absmax, state.absmax)
        assert torch.equal(values, F.dequantize_blockwise(codes, state))
        miss = (F.dequantize_blockwise(bnb_codes, state) - x).abs() - (values - x).abs()
        assert (miss <= 3.1e-5 * absmax.repeat_interleave(256)[: len(x)]).all(), miss.max()
        out[f"map.{name}"] = table
        out[f"blockwise.{name}.input"] = x
        out[f"blockwise.{name}.codes"] = codes
        out[f"blockwise.{name}.absmax"] = absmax
        out[f"blockwise.{name}.f32"] = values
    for kind in ("nf4", "fp4"):
        out[f"map.{kind}"] = F.get_4bit_type(kind, device="cpu")


def adamw_8bit(out):
    """`wide` has blockwise 8-bit states; `narrow` is under 4096 elements and keeps 32-bit ones.

    Returns the greatest difference between this and bitsandbytes' own CPU optimizer.
    """
    g = torch.Generator().manual_seed(9)
    differences = {}
    for name, n in (("wide", 4096 + 300), ("narrow", 700)):
        start = torch.randn(n, generator=g) * 0.1
        size = 0.1 + torch.rand(n, generator=g) ** 3  # gradients of different sizes in one block
        grads = (torch.randn(ADAM["steps"], n, generator=g) * size * 0.1).bfloat16()
        grads[:, 256:512] = 0  # a block that never gets a gradient
        out[f"adamw8.{name}.start"], out[f"adamw8.{name}.grads"] = start, grads
        for decay in ADAM["weight_decays"]:
            mine = run_adamw(out, name, start, grads.float(), decay)
            theirs = run_bnb(start, grads.float(), decay)
            distance = (mine - theirs).abs()
            differences[f"{name}.wd{decay}"] = {"max": distance.max().item(), "share_above_1e-5": (distance > 1e-5).float().mean().item()}
            assert name == "wide" or distance.max() < 1e-6, differences
    return differences


def run_adamw(out, name, start, grads, decay):
    """The update is computed from the states before they are rounded to 8 bits again."""
    maps = [F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)]
    eight = len(start) >= 4096
    (b1, b2), lr, eps, p = ADAM["betas"], ADAM["lr"], ADAM["eps"], start.clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step, g in enumerate(grads, 1):
        m, v = m * b1 + g * (1 - b1), v * b2 + g * g * (1 - b2)
        p = p * (1 - lr * decay)
        p = p - lr / (1 - b1**step) * m / (v.sqrt() / (1 - b2**step) ** 0.5 + eps)
        states = {"state1": m, "state2": v}
        if eight:
            (c1, a1), (c2, a2) = nearest(m, maps[0]), nearest(v, maps[1])
            m, v = table_values(c1, a1, maps[0]), table_values(c2, a2, maps[1])
            states = {"state1": c1, "state2": c2, "absmax1": a1, "absmax2": a2}
        if step in STEPS_KEPT:
            out[f"adamw8.{name}.wd{decay}.step{step}.param"] = p
            for key, value in states.items():  # decay is decoupled: the states do not depend on it
                out[f"adamw8.{name}.step{step}.{key}"] = value
    return p


def run_bnb(start, grads, decay):
    p = torch.nn.Parameter(start.clone())
    optimizer = bnb.optim.AdamW8bit([p], lr=ADAM["lr"], betas=ADAM["betas"], eps=ADAM["eps"], weight_decay=decay)
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
    return p.detach()


def main():
    out = {}
    four_bit(out)
    eight_bit(out)
    differences = adamw_8bit(out)
    out = {name: value.contiguous().clone() for name, value in out.items()}
    save_file(out, FIXTURES / "quant.safetensors")
    (FIXTURES / "quant.safetensors").chmod(0o644)
    (FIXTURES / "quant.json").write_text(json.dumps({"adamw8": ADAM, "adamw8_difference_to_bnb_on_cpu": differences, "blocksize": 64, "nested_blocksize": 256}, indent=1) + "\n")


if __name__ == "__main__":
    main()
