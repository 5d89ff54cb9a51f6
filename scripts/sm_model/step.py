"""A training step of an 8B model, one record of 2,048 tokens, low-rank updates of rank 16 on all seven maps."""

from .cases import FEED_FORWARD, HEAD_ROWS, HEADS, HIDDEN, KV_HEADS, RANK, VOCABULARY

TOKENS, LAYERS = 2048, 32
KV = HIDDEN // HEADS * KV_HEADS
# Numbers in and out of each map, whether its result is added to the residual stream, and whether the gradient of
# its input is added to that of another map.
MAPS = [
    (HIDDEN, HIDDEN, False, False),
    (HIDDEN, KV, False, True),
    (HIDDEN, KV, False, True),
    (HIDDEN, HIDDEN, True, False),
    (HIDDEN, FEED_FORWARD, False, False),
    (HIDDEN, FEED_FORWARD, False, True),
    (FEED_FORWARD, HIDDEN, True, False),
]
WEIGHTS = LAYERS * sum(inner * outer for inner, outer, _, _ in MAPS)
TRAINED = LAYERS * RANK * sum(inner + outer for inner, outer, _, _ in MAPS)
# Bytes of a layer's norms, rotations and activations for each token, forward and backward.
FORWARD_BYTES = 2 * 4 * HIDDEN + 4 * (HIDDEN + KV) + 6 * FEED_FORWARD
BACKWARD_BYTES = 2 * 8 * HIDDEN + 4 * (HIDDEN + KV) + 12 * FEED_FORWARD
CATEGORIES = ["linear", "attention", "dequantize", "elementwise", "head", "LoRA", "CE and Adam"]


class Step:
    """Seconds of each category, where all of a forward pass is kept, or layers are computed again."""

    def __init__(self, predictor, kept):
        self.card, self.kept = predictor.card, kept
        forwards = 1 if kept else 2
        self.seconds = seconds(predictor, forwards)
        self.total = sum(self.seconds.values())
        # Of what the operations alone would take at the peak.
        self.share = operations(forwards) / self.card.peak / self.total

    def as_dict(self):
        found = {"card": self.card.name, "kept": self.kept, "seconds": self.seconds, "total": self.total}
        return found | {"tokens_per_second": TOKENS / self.total, "share_of_flops": self.share}


def seconds(predictor, forwards):
    card = predictor.card
    row_bytes = LAYERS * TOKENS * (forwards * FORWARD_BYTES + BACKWARD_BYTES)
    return {
        "linear": LAYERS * linear(predictor, forwards),
        "attention": LAYERS * attention(predictor, forwards),
        "dequantize": (forwards + 1) * decoded_before(predictor),
        "elementwise": row_bytes / (card.bandwidth * card.of_rows),
        "head": head(predictor),
        "LoRA": LAYERS * low_rank(predictor, forwards),
        "CE and Adam": last(predictor),
    }


def linear(predictor, forwards):
    """The maps of a layer, whose low-rank updates ride in the same sums, and the gradients of their inputs."""
    seconds = 0
    for inner, outer, to_residual, added in MAPS:
        seconds += forwards * predictor.map("nt", (TOKENS, outer, inner), RANK, reads=to_residual)
        seconds += predictor.map("nn", (TOKENS, inner, outer), RANK, reads=added)
    return seconds


def decoded_before(predictor):
    """All weights once, unless they are decoded within the products."""
    shape = (TOKENS, HIDDEN, HIDDEN)
    return 0 if predictor.decodes_within(shape) else predictor.dequantize(WEIGHTS)


def attention(predictor, forwards):
    backward = predictor.attention_backward(TOKENS, HEADS, KV_HEADS)
    return forwards * predictor.attention(TOKENS, HEADS) + backward


def low_rank(predictor, forwards):
    """x A^T, dy B, and the gradients of A and B, each a product of its own."""
    seconds = 0
    for inner, outer, _, _ in MAPS:
        seconds += forwards * predictor.product("nt", (TOKENS, RANK, inner))
        seconds += predictor.product("nn", (TOKENS, RANK, outer))
        seconds += predictor.product("tn", (RANK, inner, TOKENS)) + predictor.product("tn", (outer, RANK, TOKENS))
    return seconds


def chunks():
    return [min(HEAD_ROWS, TOKENS - first) for first in range(0, TOKENS, HEAD_ROWS)]


def head(predictor):
    """Logits, and the gradient of what they are computed of, a chunk of rows at a time."""
    return sum(
        predictor.product("nt", (rows, VOCABULARY, HIDDEN)) + predictor.product("nn", (rows, HIDDEN, VOCABULARY))
        for rows in chunks()
    )


def last(predictor):
    return sum(predictor.cross_entropy(rows, VOCABULARY) for rows in chunks()) + predictor.stream("adamw", 28 * TRAINED)


def operations(forwards):
    """Floating-point operations that cannot be left out; half of all pairs are seen."""
    of_attention = HEADS * (HIDDEN // HEADS) * TOKENS * TOKENS * LAYERS
    head_operations = 2 * TOKENS * HIDDEN * VOCABULARY
    return 2 * TOKENS * WEIGHTS * (forwards + 1) + of_attention * (2 * forwards + 5) + 2 * head_operations
