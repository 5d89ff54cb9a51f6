"""What the libraries of the field need for the operations of `cargo bench --bench gpu`, on the same card.

    python scripts/gpu_anchors.py OUTPUT.json

Seconds of cuBLAS products and of SDPA's flash attention through torch, and of a plain copy: medians of five runs of
as many calls as take a tenth of a second.
"""

import json
import statistics
import sys
import time

import torch

TOKENS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM = 4096, 4096, 14336, 32, 8, 128


def main():
    anchors = {}
    for m in [TOKENS, TOKENS // 8, 1]:
        for form, n, k in [("Nt", HIDDEN, HIDDEN), ("Nt", FEED_FORWARD, HIDDEN), ("Nn", HIDDEN, FEED_FORWARD)]:
            anchors[f"{form}/{m}x{n}x{k}"] = product(form, m, n, k)
    anchors["attention forward"], anchors["attention backward"] = attention()
    anchors["copy"] = copy()
    with open(sys.argv[1], "w") as file:
        json.dump({"torch": torch.__version__, "seconds": anchors}, file, indent=2)


def product(form, m, n, k):
    left, right = numbers(m, k), numbers(n, k) if form == "Nt" else numbers(k, n)
    right = right.T if form == "Nt" else right
    out = numbers(m, n)
    return seconds_of(lambda: torch.mm(left, right, out=out))


def attention():
    """Forward; and forward and backward together, less forward."""
    q = numbers(1, HEADS, TOKENS, HEAD_DIM).requires_grad_()
    k, v = (numbers(1, KV_HEADS, TOKENS, HEAD_DIM).requires_grad_() for _ in range(2))
    d_o = numbers(1, HEADS, TOKENS, HEAD_DIM)

    def forward():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    first = seconds_of(forward)
    both = seconds_of(lambda: torch.autograd.grad(forward(), (q, k, v), d_o))
    return first, both - first


def copy():
    from_, to = numbers(TOKENS, HIDDEN), numbers(TOKENS, HIDDEN)
    return seconds_of(lambda: to.copy_(from_))


def numbers(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def seconds_of(call):
    def run(count):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    run(3)
    count = max(1, min(10000, int(0.1 / run(1))))
    return statistics.median(run(count) / count for _ in range(5))


if __name__ == "__main__":
    main()
