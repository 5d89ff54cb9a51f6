"""What the libraries of the field need for the cases of `cargo bench --bench gpu`, on the same card.

    python scripts/gpu_anchors.py OUTPUT.json

cuBLAS products, SDPA by flash attention and by cuDNN, decoding of four-bit weights by bitsandbytes or, where that is
not there, by a Triton kernel, and a plain copy, through torch. As in the bench, an anchor is the median of five runs
and its buffers take turns, so that none is in a cache. Each is measured alone: one that fails is a result too, and
the file is whole after every one. The keys of `cases` are the names of the bench's cases.
"""

import json
import os
import signal
import statistics
import sys
import time

try:
    import torch
except ImportError as error:
    sys.exit(f"error: no anchors without torch: {error}")

HIDDEN, FEED_FORWARD, VOCAB, RANK = 4096, 14336, 128256, 16
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128

# Seconds that one anchor may take, compilation included.
BUDGET = 8

# The buffers of an anchor are so long together: more than any second-level cache.
COLD_BYTES = 512 << 20


def main():
    anchors = Anchors(sys.argv[1])
    for name, by, measure in [*products(), *decoding(), *attentions(), copy()]:
        anchors.take(name, by, measure)
    for name, by, parts in sums():
        anchors.add_up(name, by, parts)


class Anchors:
    """Results so far, and the file that has them."""

    def __init__(self, path):
        self.path = path
        self.found = {"libraries": {"torch": torch.__version__, "cuda": torch.version.cuda}, "cases": {}}

    def take(self, name, by, measure):
        signal.signal(signal.SIGALRM, over_budget)
        signal.alarm(BUDGET)
        try:
            result = {"by": by, "seconds": measure()}
        except Exception as error:
            result = {"by": by, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        finally:
            signal.alarm(0)
        torch.cuda.empty_cache()
        self.add(name, result)

    def add_up(self, name, by, parts):
        """An anchor that is others one after the other, if all of them are there."""
        parts = [self.best(part) for part in parts]
        if None not in parts:
            self.add(name, {"by": by, "seconds": sum(parts)})

    def best(self, name):
        found = self.found["cases"].get(name, [])
        return min((anchor["seconds"] for anchor in found if "seconds" in anchor), default=None)

    def add(self, name, result):
        self.found["cases"].setdefault(name, []).append(result)
        print(name, result, flush=True)
        with open(f"{self.path}.part", "w") as file:
            json.dump(self.found, file, indent=2)
        os.replace(f"{self.path}.part", self.path)


def over_budget(*_):
    raise TimeoutError(f"not done within {BUDGET} s")


# ---- what is measured ------------------------------------------------------------------------------------------------

SHAPES = [(form, m, n, k) for m in (4096, 2048, 512)
          for form, n, k in (("Nt", HIDDEN, HIDDEN), ("Nt", FEED_FORWARD, HIDDEN), ("Nn", HIDDEN, FEED_FORWARD))]


def products():
    """Dense products, and with those of an adapter beside them; then the ones that fill a card badly."""
    for form, m, n, k in SHAPES:
        yield f"matmul Dense {form}/{m}x{n}x{k}", "cuBLAS", lambda s=(form, m, n, k): product(*s)
        yield with_lora(form, m, n, k), "cuBLAS, addmm", lambda s=(form, m, n, k): product_with_lora(*s)
    for form, m, n, k in [("Nt", 4096, RANK, FEED_FORWARD), ("Nn", 293, HIDDEN, VOCAB)]:
        yield f"matmul Dense {form}/{m}x{n}x{k}", "cuBLAS", lambda s=(form, m, n, k): product(*s)
    yield f"matmul gradient of A Tn/{RANK}x{HIDDEN}x4096", "cuBLAS, bf16", gradient_of_a


def with_lora(form, m, n, k):
    """An anchor without a case of its own: a part of the one with four-bit weights."""
    return f"matmul DenseWithLora({RANK}) {form}/{m}x{n}x{k}"


def sums():
    """Nobody multiplies by four-bit weights at these sizes: they are decoded, then multiplied by."""
    for form, m, n, k in SHAPES:
        decoded = f"dequantize/{max(n, k)}x{HIDDEN}"
        yield (f"matmul Nf4 {form}/{m}x{n}x{k}", "decoding + cuBLAS",
               [decoded, f"matmul Dense {form}/{m}x{n}x{k}"])
        yield (f"matmul Nf4WithLora({RANK}) {form}/{m}x{n}x{k}", "decoding + cuBLAS, addmm",
               [decoded, with_lora(form, m, n, k)])


def operands(form, m, n, k):
    """Left, right and result; the right one lies as a weight does: [n, k], or [k, n] on the way back."""
    right = numbers(n, k).T if form == "Nt" else numbers(k, n)
    return numbers(m, k), right, numbers(m, n)


def product(form, m, n, k):
    return seconds_of(lambda: operands(form, m, n, k), lambda left, right, out: torch.mm(left, right, out=out))


def product_with_lora(form, m, n, k):
    def both(left, right, out, low, high):
        torch.mm(left, right, out=out)
        torch.addmm(out, low, high, beta=1, out=out)

    return seconds_of(lambda: (*operands(form, m, n, k), numbers(m, RANK), numbers(RANK, n)), both)


def gradient_of_a():
    def make():
        return numbers(4096, RANK).T, numbers(4096, HIDDEN), numbers(RANK, HIDDEN)

    return seconds_of(make, lambda left, right, out: torch.mm(left, right, out=out))


def decoding():
    for rows in (FEED_FORWARD, HIDDEN):
        yield f"dequantize/{rows}x{HIDDEN}", "bitsandbytes", lambda rows=rows: decoding_by_bitsandbytes(rows)
        yield f"dequantize/{rows}x{HIDDEN}", "Triton", lambda rows=rows: decoding_by_triton(rows)


def decoding_by_bitsandbytes(rows):
    from bitsandbytes import functional

    def make():
        return functional.quantize_4bit(numbers(rows, HIDDEN), blocksize=64, quant_type="nf4", compress_statistics=True)

    # A state is no tensor: the codes alone say how long a set is.
    return seconds_of(make, lambda codes, state: functional.dequantize_4bit(codes, state))


def decoding_by_triton(rows):
    import gpu_anchor_nf4

    return seconds_of(lambda: gpu_anchor_nf4.buffers(rows * HIDDEN), gpu_anchor_nf4.decode)


def attentions():
    for tokens in (4096, 2048):
        for way, measure in [("forward", attention_forward), ("backward", attention_backward)]:
            for by, backend in [("flash", "FLASH_ATTENTION"), ("cuDNN", "CUDNN_ATTENTION")]:
                yield (f"attention {way}/{tokens}, {HEADS} heads", f"SDPA, {by}",
                       lambda measure=measure, tokens=tokens, backend=backend: measure(tokens, backend))


def heard(tokens):
    q = numbers(1, HEADS, tokens, HEAD_DIM).requires_grad_()
    k, v = (numbers(1, KV_HEADS, tokens, HEAD_DIM).requires_grad_() for _ in range(2))
    return q, k, v


def attention(q, k, v, backend):
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention_forward(tokens, backend):
    with torch.no_grad():
        return seconds_of(lambda: heard(tokens), lambda q, k, v: attention(q, k, v, backend))


def attention_backward(tokens, backend):
    def make():
        q, k, v = heard(tokens)
        return q, k, v, attention(q, k, v, backend), numbers(1, HEADS, tokens, HEAD_DIM)

    def back(q, k, v, o, d_o):
        torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True)

    return seconds_of(make, back)


def copy():
    def make():
        return numbers(65536, HIDDEN), numbers(65536, HIDDEN)

    return f"copy/65536x{HIDDEN}", "torch", lambda: seconds_of(make, lambda from_, to: to.copy_(from_))


# ---- how it is measured ----------------------------------------------------------------------------------------------


def numbers(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def seconds_of(make, call):
    """Seconds of one call on buffers that `make` gives, in turn."""
    sets = cold_sets(make)

    def run(count):
        begun = time.perf_counter()
        for turn in range(count):
            call(*sets[turn % len(sets)])
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / count

    warm = min(run(len(sets)) for _ in range(2))
    count = max(1, min(10000, int(0.05 / warm)))
    return statistics.median(run(count) for _ in range(5))


def cold_sets(make):
    sets = [make()]
    bytes_of_set = sum(x.numel() * x.element_size() for x in sets[0] if isinstance(x, torch.Tensor))
    while len(sets) * bytes_of_set < COLD_BYTES:
        sets.append(make())
    return sets


if __name__ == "__main__":
    main()
