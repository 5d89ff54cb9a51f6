"""Targets and cards: everything that the predictions assume of hardware, but for latencies."""

from dataclasses import dataclass
from typing import NamedTuple

SUB_CORES = 4
LANES = 32


class Timing(NamedTuple):
    """Cycles of a sub-core in which targets differ."""

    # Between two tensor instructions, as mma.sync reaches it, and until their sums can be added to.
    tensor: float
    tensor_latency: int
    # Between two instructions on 64-bit floating-point numbers.
    double: int


@dataclass(frozen=True)
class Target:
    """An architecture as the assembler names it."""

    name: str
    # What an SM has room for.
    shared: int
    threads: int
    blocks: int
    # Cycles between two tensor instructions at the peak that is advertised.
    tensor_at_peak: float
    timing: Timing
    # From L2 to an SM, bytes a cycle.
    l2_rate: float


# Sums in f32 run at half the rate of the tensor cores of GeForce; on Hopper mma.sync reaches 62 % of wgmma.
GEFORCE, HOPPER = Timing(32, 40, 64), Timing(6.4, 33, 2)
TARGETS = {
    target.name: target
    for target in [
        Target("sm_86", 100 << 10, 1536, 16, 32, GEFORCE, 16),
        Target("sm_89", 100 << 10, 1536, 24, 32, GEFORCE, 16),
        Target("sm_90", 228 << 10, 2048, 32, 4, HOPPER, 28),
    ]
}


@dataclass(frozen=True)
class Card:
    """Clock in Hz, peak of dense bf16 in operations a second, bandwidth that a copy reaches in bytes a second."""

    name: str
    target: str
    sms: int
    clock: float
    peak: float
    bandwidth: float
    l2: int
    # Of a copy's bandwidth: kernels that read and write rows a few bytes a thread, and the one that decodes weights,
    # whose stores are 16 bytes at a stride of 128.
    of_rows: float
    of_decoding: float
    # Rows up to which a four-bit operand is decoded within the product, as `src/ops/gemm/gpu.rs` has it.
    rows_of_four_bits: int


CARDS = [
    Card("H100", "sm_90", 132, 1.755e9, 989e12, 3.0e12, 50 << 20, 0.60, 0.75, 192),
    Card("4090", "sm_89", 128, 2.52e9, 165.2e12, 0.92e12, 72 << 20, 0.85, 0.88, 2048),
    Card("3090", "sm_86", 82, 1.695e9, 71e12, 0.84e12, 6 << 20, 0.85, 0.88, 2048),
]


def card_of(target):
    return next(card for card in CARDS if card.target == target)
