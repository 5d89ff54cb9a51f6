"""One SM that executes the main loop of a kernel: how many cycles a round takes.

Four sub-cores issue one instruction a cycle each. A sub-core stays with the warp that issued last as long as it can
and then takes the first of its warps that is ready. A warp issues in order, when

- what the instruction reads is there, and what it overwrites has been read and will not come after it;
- its pipe is free: pipes of tensor, integer, float, special-function and uniform instructions take one every few
  cycles, those of memory too;
- the one shared-memory pipe of the SM, a queue of all sub-cores, is not further behind than it may be;
- the copies that it waits for have come; and all warps of the block have come to a barrier.

Not in the model: caches, bank conflicts (the kernels have none), register banks, instruction fetch, DRAM. Latencies
and intervals are assumed, not measured, and the same for all targets but for tensor and 64-bit instructions.
"""

import functools
import math
import re
from typing import NamedTuple

from .cards import SUB_CORES
from .sass import COPIES_PENDING

# Cycles after a branch, taken or not, and from the last warp at a barrier until all go on.
BRANCH, BARRIER = 8, 20
# How far the shared-memory pipe may be behind.
QUEUE = 24
NEVER_AGAIN = math.inf
# From a global load, or the last copy of a group, until its numbers are there.
GLOBAL, COPY = 500, 500
# When the pipe may overwrite what an earlier instruction writes, before that is written.
OVERTAKE = 3


# Rounds until all is in full swing, rounds that are measured, and those after which a warp stops. How many, and the
# latency of copies, were chosen among a few for which the shares come nearest to those of an independent review: with
# 6 to 15 rounds and 0 to 700 cycles most move by a few per cent, the four-bit product on sm_90 by 15.
WARM, MEASURED, ROUNDS = 2, 6, 9


@functools.lru_cache(maxsize=None)
def cycles_of_round(path, timing, blocks, warps):
    """Cycles that an SM takes for a round of all its blocks.

    Measured at the slowest warp: blocks begin together, and those that are ahead wait for nobody but stop first, as
    those of one wave do. Blocks that never stopped would do more, a tenth more in matmul_large_nt on sm_90.
    """
    passed = Machine(path, timing, blocks, warps, ROUNDS).run().passed
    return (passed[WARM + MEASURED] - passed[WARM]) / MEASURED


@functools.lru_cache(maxsize=None)
def cycles_of_run(path, timing, blocks, warps, rounds=3):
    """The same of a few rounds from the start, for code without barriers, whose warps run apart."""
    return Machine(path, timing, blocks, warps, rounds).run().passed[rounds] / rounds


class Kind(NamedTuple):
    """What the model knows of an instruction: its pipe, cycles between two of them, cycles until its result."""

    pipe: str | None
    interval: float
    latency: int
    # Cycles of the shared-memory pipe.
    shared: int | None = None
    # Cycles until its operands have been read.
    reads: int = 0


ALU = Kind("alu", 2, 5)
CONTROL = Kind(None, 0, 10)
KINDS = {
    "LDSM": Kind("memory", 2, 33, shared=4, reads=2),
    "LDS": Kind("memory", 2, 30, shared=1, reads=2),
    "LDS.128": Kind("memory", 2, 33, shared=4, reads=2),
    "STS": Kind("memory", 2, 33, shared=4, reads=2),
    "LDGSTS": Kind("memory", 2, 33, shared=4, reads=2),
    "SHFL": Kind("memory", 2, 31, shared=2, reads=2),
    "IMAD": Kind("integer", 2, 5),
    **dict.fromkeys(("FFMA", "FMUL", "FADD"), Kind("float", 1, 5)),
    "MUFU": Kind("special", 8, 22),
    "F2FP": Kind("alu", 2, 6),
    **dict.fromkeys(("LDC", "ULDC", "LDCU"), Kind(None, 0, 35)),
    **dict.fromkeys(("S2R", "S2UR"), Kind(None, 0, 25)),
    **dict.fromkeys(("LDG", "LD"), Kind(None, 0, GLOBAL)),
    **dict.fromkeys(
        ("BAR", "DEPBAR", "LDGDEPBAR", "BRA", "BSSY", "BSYNC", "NOP", "CALL", "EXIT", "WARPSYNC", "STG", "ST"), CONTROL
    ),
}
# A load that a predicate never lets through takes a place of the memory pipe, but none of the shared-memory pipe.
NEVER = Kind("memory", 2, 0, shared=0)
NO_RESULT = {"STS", "LDGSTS", "STG", "ST", "BAR", "DEPBAR", "LDGDEPBAR", "BRA", "BSSY", "BSYNC", "NOP", "CALL", "EXIT"}
DOUBLES = {"DADD", "DMUL", "DFMA", "DSETP"}


def kind_of(instruction, timing):
    base = instruction.base
    if instruction.predicate == "!PT":
        return NEVER
    if base == "HMMA":
        return Kind("tensor", timing.tensor, timing.tensor_latency, reads=4)
    if base in DOUBLES:
        return Kind("double", timing.double, 16)
    if base == "LDS" and ".128" in instruction.opcode:
        base = "LDS.128"
    return KINDS.get(base) or (Kind("uniform", 2, 12) if base.startswith("U") else ALU)


def registers(operand, width=1):
    """The registers and predicates that an operand names, `width` registers from each on."""
    found = []
    for file, number, wide in re.findall(r"\b(UR|R)(\d+)\b(\.64)?", operand):
        found += [f"{file}{int(number) + k}" for k in range(2 if wide else width)]
    return found + re.findall(r"\bU?P\d\b", operand)


def width_of(opcode):
    """Registers of the result."""
    if opcode.startswith(("HMMA", "LDSM")) or ".128" in opcode:
        return 4
    return 2 if ".WIDE" in opcode or ".64" in opcode or opcode.startswith("CS2R") else 1


def written(instruction):
    """Registers of the result, and the number of operands that name them."""
    operands = instruction.operands
    if instruction.predicate == "!PT" or instruction.base in NO_RESULT or not operands:
        return [], 0
    result = registers(operands[0], width_of(instruction.opcode))
    # A second result is a predicate: a carry, or the other half of a comparison.
    if len(operands) > 1 and re.fullmatch(r"U?P(\d|T)", operands[1]):
        return result + registers(operands[1]), 2
    return result, 1


def read(instruction, results):
    """Registers that an instruction reads: those of the operands behind its `results`, and its predicate."""
    if instruction.predicate == "!PT":
        return []
    found = registers(instruction.predicate or "")
    operands = instruction.operands[results:]
    for place, operand in enumerate(operands):
        is_last, width = place == len(operands) - 1, 1
        if instruction.base == "HMMA":
            width = (4, 2, 4)[place]
        elif is_last and instruction.opcode.startswith("STS.128"):
            width = 4
        elif is_last and ".WIDE" in instruction.opcode:
            width = 2
        found += registers(operand, width)
    return found


class Step(NamedTuple):
    """An instruction as the model executes it; registers are numbered through."""

    base: str
    kind: Kind
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    # Copies that may still be on their way behind a wait.
    pending: int


def steps_of(path, timing):
    numbers, steps = {}, []

    def numbered(names):
        return tuple(numbers.setdefault(name, len(numbers)) for name in dict.fromkeys(names))

    for each in path:
        writes, results = written(each)
        reads = numbered(read(each, results))
        pending = COPIES_PENDING.search(each.text)
        waits = int(pending[1], 16) if pending else 0
        steps.append(Step(each.base, kind_of(each, timing), reads, numbered(writes), waits))
    return steps, len(numbers)


class Warp:
    """Where a warp is, and when its registers can be read and overwritten."""

    __slots__ = ("number", "block", "place", "rounds", "written", "read", "earliest", "held", "last_copy", "groups")

    def __init__(self, number, block, count):
        self.number, self.block, self.place, self.rounds = number, block, 0, 0
        self.written, self.read = [0] * count, [0] * count
        # When the next instruction may be issued, for all that its own warp knows; and behind a barrier.
        self.earliest = self.held = 0
        # When the last copy is there, and when each group of copies is.
        self.last_copy, self.groups = 0, []

    def wait_for_operands(self, step, now):
        """The next instruction is `step`, not before `now`."""
        written, read = self.written, self.read
        for register in step.reads:
            if written[register] > now:
                now = written[register]
        overtake = NEVER_AGAIN if step.base == "HMMA" else OVERTAKE
        for register in step.writes:
            if read[register] > now:
                now = read[register]
            if written[register] - overtake > now:
                now = written[register] - overtake
        if step.base == "DEPBAR" and len(self.groups) > step.pending:
            now = max(now, self.groups[-1 - step.pending])
        self.earliest = now


class Machine:
    """An SM with `blocks` blocks of `warps` warps, which go `rounds` times through the same loop."""

    def __init__(self, path, timing, blocks, warps, rounds):
        self.steps, count = steps_of(path, timing)
        self.warps = [Warp(number, number // warps, count) for number in range(blocks * warps)]
        self.of_block, self.arrived = warps, [0] * blocks
        # The warps of each sub-core in the order in which they are asked, by the place of the one that issued last.
        self.orders = [orders(self.warps[each::SUB_CORES]) for each in range(SUB_CORES)]
        self.sub_cores = [each[0] if each else [] for each in self.orders]
        self.free = [{} for _ in range(SUB_CORES)]
        self.wake = [0] * SUB_CORES
        self.shared, self.rounds = 0, rounds
        # When the last warp has gone through the loop so many times.
        self.passed = [0] * (rounds + 1)

    def run(self):
        while (now := min(self.wake)) < NEVER_AGAIN:
            for each in range(SUB_CORES):
                if self.wake[each] <= now:
                    self.issue(each, now)
        return self

    def issue(self, number, now):
        """Issues from a sub-core what can be issued, and says when to look again."""
        free, soonest = self.free[number], NEVER_AGAIN
        for warp in self.sub_cores[number]:
            earliest = warp.earliest
            if earliest <= now:
                kind = self.steps[warp.place].kind
                earliest = free.get(kind.pipe, 0)
                if kind.shared is not None and self.shared - QUEUE > earliest:
                    earliest = self.shared - QUEUE
                if earliest <= now:
                    self.wake[number] = now + 1
                    self.execute(warp, free, now)
                    self.sub_cores[number] = self.orders[number][warp.number // SUB_CORES]
                    return
            soonest = min(soonest, earliest)
        self.wake[number] = soonest if soonest == NEVER_AGAIN else max(now + 1, math.ceil(soonest))

    def execute(self, warp, free, now):
        step = self.steps[warp.place]
        kind, done = step.kind, now + step.kind.latency
        if kind.pipe:
            # A pipe that is free within this cycle starts the next one in the middle of a cycle.
            before = free.get(kind.pipe, 0)
            free[kind.pipe] = (before if before > now - 1 else now) + kind.interval
        if kind.shared is not None:
            begun = max(now, self.shared)
            self.shared = begun + kind.shared
            done = begun + kind.latency
        for register in step.writes:
            warp.written[register] = done
        if kind.reads:
            for register in step.reads:
                warp.read[register] = now + kind.reads
        if step.base == "LDGSTS":
            warp.last_copy = now + COPY
        elif step.base == "LDGDEPBAR":
            warp.groups = [*warp.groups[-7:], warp.last_copy]
        self.advance(warp, step, now)

    def advance(self, warp, step, now):
        """The warp goes to its next instruction."""
        follows = now + (BRANCH if step.base in ("BRA", "CALL") else 1)
        warp.place += 1
        if warp.place == len(self.steps):
            warp.place, follows = 0, now + BRANCH
            warp.rounds += 1
            self.passed[warp.rounds] = now
            if warp.rounds == self.rounds:
                warp.earliest = NEVER_AGAIN
                return
        warp.wait_for_operands(self.steps[warp.place], follows)
        if step.base == "BAR":
            self.arrive(warp, now)

    def arrive(self, warp, now):
        """At a barrier nobody goes on before the last one has come."""
        self.arrived[warp.block] += 1
        if self.arrived[warp.block] < self.of_block:
            warp.held, warp.earliest = warp.earliest, NEVER_AGAIN
            return
        self.arrived[warp.block] = 0
        first = warp.block * self.of_block
        for other in self.warps[first:first + self.of_block]:
            held = warp.earliest if other is warp else other.held
            other.earliest = max(held, now + BARRIER)
            sub_core = other.number % SUB_CORES
            self.wake[sub_core] = min(self.wake[sub_core], other.earliest)


def orders(warps):
    """The warp that issued last comes first, then the others by their numbers."""
    return [[last, *(other for other in warps if other is not last)] for last in warps]


def floor_of(path, timing, warps):
    """Cycles that a block takes for a round by each limit alone."""
    steps, _ = steps_of(path, timing)
    pipes = {}
    for step in steps:
        pipes[step.kind.pipe] = pipes.get(step.kind.pipe, 0) + step.kind.interval
    tensor = pipes.pop("tensor", 0)
    of_each = warps / SUB_CORES
    return {
        "tensor": tensor * of_each,
        "issue": len(steps) * of_each,
        "shared memory": sum(step.kind.shared or 0 for step in steps) * warps,
        "other pipes": max(cycles for pipe, cycles in pipes.items() if pipe) * of_each,
    }
