"""Seconds of operations on shapes: main loop, blocks on the card, order of tiles; and the cases of the bench."""

import math

from .cards import LANES, SUB_CORES
from .kernels import DEPTH, FOUR_BIT, LAUNCHES
from .machine import GLOBAL
from .schedule import cycles_of_grid, together, traffic

# Assumed: instructions for each number of a result that a thread holds, and cycles until the first stages are there.
FINISH, FILL = 19, 2 * GLOBAL
ROWS = 64


class Predictor:
    """The figures of all kernels on the target of a card."""

    def __init__(self, card, figures):
        self.card = card
        self.figures = {figure.kernel: figure for figure in figures if figure.target == card.target}

    def grid(self, figure, lengths):
        return cycles_of_grid(lengths, self.card.sms, figure) / self.card.clock

    def product(self, form, shape, extension=0, reads=False, right=""):
        """m x n of depth k, and of `extension` in the same sums.

        `reads`: the sums are added to what is there, or to a residual, which is loaded number by number.
        """
        m, n, k = shape
        name = f"matmul_{right or ('large_' if min(m, n) > 64 else '')}{form}"
        figure, tile = self.figures[name], LAUNCHES[name].tile
        # A thread has 64 numbers of a large tile, and 32 of a small one.
        numbers = tile // 2
        warps = tile * tile // numbers // LANES
        once = FILL + FINISH * numbers * warps / SUB_CORES + (numbers * GLOBAL if reads else 0)
        rounds = math.ceil(k / DEPTH) + math.ceil(extension / DEPTH) + once / figure.full
        blocks = math.ceil(m / tile) * math.ceil(n / tile)
        bytes_of_weight = FOUR_BIT if right else 2.0
        moved = traffic(self.card, figure.residents, tile, shape, bytes_of_weight)
        return together(self.grid(figure, [rounds] * blocks), moved / self.card.bandwidth)

    def four_bit_product(self, form, shape, extension=0, reads=False):
        """The right operand is decoded on its way for few rows, else before."""
        _, n, k = shape
        decoding = 0 if self.decodes_within(shape) else self.dequantize(n * k)
        return decoding + self.map(form, shape, extension, reads)

    def map(self, form, shape, extension=0, reads=False):
        """The product of a four-bit operand without what decodes it before."""
        return self.product(form, shape, extension, reads, right="4bit_" if self.decodes_within(shape) else "")

    def decodes_within(self, shape):
        return shape[0] <= self.card.rows_of_four_bits

    def stream(self, kernel, moved):
        """A kernel that DRAM bounds, unless its own loop takes longer."""
        reached = self.card.of_decoding if kernel == "dequantize" else self.card.of_rows
        return moved / (self.card.bandwidth * min(reached, self.figures[kernel].share))

    def dequantize(self, numbers):
        return self.stream("dequantize", numbers * (2 + FOUR_BIT))

    def attention(self, tokens, heads):
        """Forward over one record: a block has 64 queries of a head, light ones first."""
        figure = self.figures["attention_128"]
        lengths = [each + 1 + 0.5 for _ in range(heads) for each in range(math.ceil(tokens / ROWS))]
        return self.grid(figure, lengths)

    def attention_backward(self, tokens, heads, kv_heads):
        """One kernel for queries, 32 keys at a time, and one for keys, 16 queries of each head of a group at a time."""
        tiles = math.ceil(tokens / ROWS)
        of_queries = [2 * (each + 1) + 0.5 for _ in range(heads) for each in range(tiles)]
        group = heads // kv_heads
        of_keys = [group * 4 * (tiles - each) + 0.5 for _ in range(kv_heads) for each in range(tiles)]
        return self.grid(self.figures["attention_backward_q_128"], of_queries) + self.grid(
            self.figures["attention_backward_kv_128"], of_keys
        )

    def cross_entropy(self, rows, vocabulary):
        """A block of 256 threads for a row."""
        figure = self.figures["cross_entropy"]
        return together(
            self.grid(figure, [math.ceil(vocabulary / 256)] * rows),
            6 * rows * vocabulary / (self.card.bandwidth * self.card.of_rows),
        )


HIDDEN, FEED_FORWARD, VOCABULARY, HEADS, KV_HEADS, RANK = 4096, 14336, 128_256, 32, 8, 16
TOKENS = 4096
# Rows of logits at a time.
HEAD_ROWS = 293


def bench(predictor):
    """Seconds of the cases of `benches/gpu/cases.rs`, by their names."""
    return products(predictor) | attention(predictor) | rows(predictor)


def attention(predictor):
    found = {}
    for tokens in (TOKENS, TOKENS // 2):
        found[f"attention forward/{tokens}, {HEADS} heads"] = predictor.attention(tokens, HEADS)
        backward = predictor.attention_backward(tokens, HEADS, KV_HEADS)
        found[f"attention backward/{tokens}, {HEADS} heads"] = backward
    return found


def products(predictor):
    found = {}
    for m in (TOKENS, TOKENS // 2, TOKENS // 8):
        for form, n, k in (("Nt", HIDDEN, HIDDEN), ("Nt", FEED_FORWARD, HIDDEN), ("Nn", HIDDEN, FEED_FORWARD)):
            shape, on = (m, n, k), f"{form}/{m}x{n}x{k}"
            found[f"matmul Dense {on}"] = predictor.product(form.lower(), shape)
            found[f"matmul Nf4 {on}"] = predictor.four_bit_product(form.lower(), shape)
            found[f"matmul Nf4WithLora({RANK}) {on}"] = predictor.four_bit_product(form.lower(), shape, extension=RANK)
    for form, shape in (("Nt", (TOKENS, RANK, FEED_FORWARD)), ("Nn", (HEAD_ROWS, HIDDEN, VOCABULARY))):
        found[f"matmul Dense {form}/{'x'.join(map(str, shape))}"] = predictor.product(form.lower(), shape)
    gradient = predictor.product("tn", (RANK, HIDDEN, TOKENS), reads=True)
    return found | {f"matmul gradient of A Tn/{RANK}x{HIDDEN}x{TOKENS}": gradient}


def rows(predictor):
    numbers, wide, weights = TOKENS * HIDDEN, TOKENS * FEED_FORWARD, HIDDEN * HIDDEN
    return {
        f"rmsnorm forward/{TOKENS}x{HIDDEN}": predictor.stream("rmsnorm", 4 * numbers),
        f"rmsnorm backward/{TOKENS}x{HIDDEN}": predictor.stream("rmsnorm_backward", 6 * numbers),
        f"swiglu forward/{TOKENS}x{FEED_FORWARD}": predictor.stream("glu", 6 * wide),
        f"cross-entropy and gradient/{HEAD_ROWS}x{VOCABULARY}": predictor.cross_entropy(HEAD_ROWS, VOCABULARY),
        f"dequantize/{FEED_FORWARD}x{HIDDEN}": predictor.dequantize(FEED_FORWARD * HIDDEN),
        f"adamw/{weights}": predictor.stream("adamw", 28 * weights),
        f"sum of squares/{weights}": predictor.stream("sum_squares", 4 * weights),
    }
