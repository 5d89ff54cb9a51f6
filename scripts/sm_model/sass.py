"""What `nvdisasm -c` prints of a cubin: functions, their loops, and the path through a loop in its steady state."""

import re
from typing import NamedTuple

FUNCTION = re.compile(r"\.text\.(\w+):")
LABEL = re.compile(r"(\.L_\w+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
PREDICATE = re.compile(r"@(!?U?P\w+)\s+")
TARGET = re.compile(r"`\((\.L_\w+)\)")
COPIES_PENDING = re.compile(r"DEPBAR\.LE SB0, 0x(\w+)")

# Only rare cases hold these: numbers that are read one by one, a division or tanh that takes the long way, and a
# wait for all copies.
RARE = re.compile(r"\b(LDG?\.E\.U16|FCHK|MUFU\.TANH|DEPBAR\.LE SB0, 0x0)\b")
# And the work of a steady round, which is never jumped over.
WORK = re.compile(r"\b(HMMA|LDGSTS|LDG\.E(?!\.U16)|STG)")


class Instruction(NamedTuple):
    """One instruction: `predicate` as in !P0 or None, `operands` as they are written."""

    predicate: str | None
    opcode: str
    operands: tuple[str, ...]
    text: str

    @property
    def base(self):
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self):
        """The label that it goes to."""
        found = TARGET.search(self.text)
        return found and found[1]


class Function(NamedTuple):
    instructions: list[Instruction]
    # The index of the instruction behind each label.
    labels: dict[str, int]


class Loop(NamedTuple):
    """From the instruction that a branch goes back to, to that branch."""

    first: int
    last: int

    def holds(self, other):
        return self != other and self.first <= other.first and other.last <= self.last


def instruction(text):
    predicate = PREDICATE.match(text)
    opcode, _, rest = text[predicate.end() if predicate else 0:].strip().partition(" ")
    operands = tuple(part.strip() for part in rest.split(",")) if rest else ()
    return Instruction(predicate and predicate[1], opcode, operands, text)


def functions(listing):
    """The functions of a listing by name."""
    found, function = {}, None
    for line in listing.splitlines():
        if name := FUNCTION.match(line):
            function = found[name[1]] = Function([], {})
        elif function and (label := LABEL.match(line)):
            function.labels[label[1]] = len(function.instructions)
        elif function and (text := INSTRUCTION.match(line)):
            function.instructions.append(instruction(text[1]))
    return found


def loops(function):
    """All loops, in the order of their branches back."""
    for index, each in enumerate(function.instructions):
        first = function.labels.get(each.target, index + 1) if each.base == "BRA" else index + 1
        if first <= index:
            yield Loop(first, index)


def innermost(function, *bases):
    """The innermost ones of the loops that have all these instructions."""
    def has(loop, base):
        return any(each.base == base for each in function.instructions[loop.first:loop.last + 1])

    able = [loop for loop in loops(function) if all(has(loop, base) for base in bases)]
    return [loop for loop in able if not any(loop.holds(other) for other in able)]


def main_loop(function):
    """The first innermost loop with tensor instructions and a barrier: a round brings tiles and multiplies them."""
    found = innermost(function, "HMMA", "BAR")
    return found[0] if found else None


def steady_path(function, loop):
    """The instructions that a warp executes in one round of a loop in its steady state.

    A branch on a condition is not taken, unless what it jumps over is a rare case: it has an instruction of RARE and
    none of WORK. So the path has whole tiles whose rows are aligned, more copies on their way, and every mask. A
    branch back within the loop is taken as often as the counter of its loop says, or never where that is unknown.
    """
    whole, path, index = function.instructions, [], loop.first
    reached = {}
    while index <= loop.last:
        each = whole[index]
        reached[index] = len(path)
        path.append(each)
        target = function.labels.get(each.target, index + 1) if each.base == "BRA" else index + 1
        if each.predicate is None and each.base == "EXIT":
            break
        if each.predicate is None and target != index + 1:
            if not loop.first < target <= loop.last or target in reached:
                break
            index = target
        elif loop.first < target <= index:
            inner = path[reached[target]:]
            path += inner * (trips(whole[target:index + 1]) - 1)
            index += 1
        elif index < target <= loop.last + 1 and is_rare(whole[index + 1:target]):
            index = target
        else:
            index += 1
    return path


def is_rare(skipped):
    text = "\n".join(each.text for each in skipped)
    return RARE.search(text) is not None and WORK.search(text) is None


def trips(body):
    """How often an inner loop is gone through: the bound that its counter is compared with, by what is added to it.

    Once, if it has no such counter.
    """
    for compared in reversed(body):
        bound = re.search(r"ISETP\S* \w+, \w+, (U?R\d+), (0x\w+)", compared.text)
        if not bound:
            continue
        for added in body:
            step = re.search(rf"(?:IADD3|VIADD|UIADD3) {bound[1]}, {bound[1]}, (0x\w+)", added.text)
            if step:
                return int(bound[2], 16) // int(step[1], 16)
    return 1
