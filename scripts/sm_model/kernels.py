"""What the launches say of each kernel, and what the model makes of it on a target."""

import math
import re
from dataclasses import dataclass

from . import sass
from .cards import LANES, SUB_CORES, card_of
from .machine import cycles_of_round, cycles_of_run, floor_of
from .schedule import traffic


@dataclass(frozen=True)
class Launch:
    """A kernel with tensor instructions as `src/ops/*/gpu.rs` launches it."""

    image: str
    # Dynamic shared memory, and bytes that a block brings for a round of its main loop.
    shared: int
    brought: int
    # Rows and columns of the result of a block, if it is a product.
    tile: int | None = None


DEPTH = 64
# Bytes that a four-bit weight is read with: its code, and a byte and a little for the scale of 64.
FOUR_BIT = 0.516


def product(tile):
    """Three stages of both operands, bf16."""
    stage = 2 * tile * DEPTH * 2
    return Launch("matmul", 3 * stage, stage, tile)


def decoded_product():
    """Two stages of both operands; of the right one, 4 bits a number come, and a byte for each 64 of them."""
    return Launch("matmul_4bit", 2 * 2 * 64 * DEPTH * 2, 64 * DEPTH * 2 + 64 * (DEPTH // 2 + 1), 64)


def attention(image, own, others, width, extra=0):
    """`own` matrices of 64 rows, and two of `others` rows that come in each round."""
    brought = 2 * others * width * 2
    return Launch(image, own * 64 * width * 2 + brought + extra, brought)


LAUNCHES = {
    **{f"matmul_{form}": product(64) for form in ("nt", "nn", "tn")},
    **{f"matmul_large_{form}": product(128) for form in ("nt", "nn", "tn")},
    **{f"matmul_4bit_{form}": decoded_product() for form in ("nt", "nn")},
    "attention_64": attention("attention", 1, 64, 64),
    "attention_128": attention("attention", 1, 64, 128),
    "attention_256": attention("attention", 1, 32, 256),
}
for _width, _keys, _queries in ((64, 64, 32), (128, 32, 16), (256, 32, 16)):
    LAUNCHES[f"attention_backward_q_{_width}"] = attention("attention_backward", 2, _keys, _width)
    LAUNCHES[f"attention_backward_kv_{_width}"] = attention("attention_backward", 2, _queries, _width, 8 * _queries)


@dataclass(frozen=True)
class Figure:
    """What is predicted of a kernel on a target."""

    kernel: str
    target: str
    registers: int
    # Blocks that an SM has room for.
    residents: int
    # Of one round, executed by each warp.
    instructions: int
    tensor: int
    # Cycles of a round for one block alone on an SM, and for as many as it has room for.
    alone: float
    full: float
    # Of the tensor peak, or of the bandwidth of DRAM if the kernel has no tensor instructions.
    share: float
    # Shares that each limit alone would allow, and the one that binds.
    limits: dict
    bound: str

    def cycles(self, residents):
        """Cycles of a round of so many blocks on an SM: between both figures, those of the model lie on a line."""
        if self.residents == 1:
            return self.full
        return self.alone + (self.full - self.alone) * (residents - 1) / (self.residents - 1)

    @property
    def instructions_per_64_mma(self):
        return round(self.instructions * 64 / self.tensor, 1) if self.tensor else None


# Below this share of the tightest limit it is not a full pipe that binds, but instructions that wait for each other.
FILLED = 0.75


def figure(kernel, function, registers, threads, target):
    launch = LAUNCHES.get(kernel)
    residents = residents_of(registers, threads, launch.shared if launch else 0, target)
    make = of_tensors if launch else of_streams
    instructions, tensor, alone, full, share, limits = make(function, launch, residents, threads // LANES, target)
    tightest = min(limits, key=limits.get)
    bound = tightest if share >= FILLED * limits[tightest] else "latency"
    limits = {name: round(limit, 3) for name, limit in limits.items()}
    rounded = (round(alone, 1), round(full, 1), round(share, 4), limits)
    return Figure(kernel, target.name, registers, residents, instructions, tensor, *rounded, bound)


def residents_of(registers, threads, shared, target):
    """Blocks on an SM. Registers are dealt to warps by 256; a block takes a kilobyte of shared memory for itself."""
    of_warp = -(-registers * LANES // 256) * 256
    return min(
        65536 // of_warp // (threads // LANES),
        target.shared // (shared + 1024),
        target.threads // threads,
        target.blocks,
    )


def of_tensors(function, launch, residents, warps, target):
    path = tuple(sass.steady_path(function, sass.main_loop(function)))
    full = cycles_of_round(path, target.timing, residents, warps)
    alone = cycles_of_round(path, target.timing, 1, warps)
    tensor = sum(each.base == "HMMA" for each in path)
    at_peak = tensor * warps / SUB_CORES * target.tensor_at_peak
    floors = floor_of(path, target.timing, warps) | {"L2": launch.brought / target.l2_rate}
    limits = {name: at_peak / cycles for name, cycles in floors.items()}
    if launch.tile:
        limits["DRAM"] = of_dram(launch, residents, target)
    return len(path), tensor, alone, full, at_peak * residents / full, limits


# The product at which the order of tiles is looked at: the widest map of an 8B model, for 2,048 tokens.
WIDE = (2048, 14336, 4096)


def of_dram(launch, residents, target):
    """The share of the peak at which the bytes of a wide product take as long as its multiplications."""
    card = card_of(target.name)
    bytes_of_weight = FOUR_BIT if launch.image == "matmul_4bit" else 2
    moved = traffic(card, residents, launch.tile, WIDE, bytes_of_weight)
    return 2 * math.prod(WIDE) / card.peak / (moved / card.bandwidth)


def of_streams(function, _, residents, warps, target):
    """All loops that read global memory, one after another, or the whole kernel if there is none."""
    loops = sass.innermost(function, "LDG") or [sass.Loop(0, len(function.instructions) - 1)]
    paths = [tuple(sass.steady_path(function, loop)) for loop in loops]
    full = sum(cycles_of_run(path, target.timing, residents, warps) for path in paths)
    alone = sum(cycles_of_run(path, target.timing, 1, warps) for path in paths)
    moved = sum(bytes_of(each) for path in paths for each in path) * warps * LANES
    card = card_of(target.name)
    at_bandwidth = moved / (card.bandwidth / card.clock / card.sms)
    floors = [floor_of(path, target.timing, warps) for path in paths]
    limits = {name: at_bandwidth / sum(floor[name] for floor in floors) for name in ("issue", "other pipes")}
    limits["DRAM"] = 1.0
    return sum(map(len, paths)), 0, alone, full, min(1.0, at_bandwidth * residents / full), limits


def bytes_of(instruction):
    """Bytes of global memory that a thread moves."""
    if instruction.base not in ("LDG", "STG", "LD", "ST"):
        return 0
    width = re.search(r"\.(U8|U16|64|128)\b", instruction.opcode)
    return {"U8": 1, "U16": 2, "64": 8, "128": 16}[width[1]] if width else 4
