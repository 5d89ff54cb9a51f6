"""Assembles the prebuilt PTX for every target and holds it against `kernels/budgets.json`, without a GPU.

    pip install --target target/ptxas nvidia-cuda-nvcc-cu12==12.8.93 nvidia-cuda-nvdisasm==13.5.37
    python scripts/check_kernels.py target/ptxas [--table]

Of every kernel on every target: no spill, no stack frame, no local memory; at most as many registers as its budget
says; and the instructions that its speed rests on. --table prints what was found.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from compile_kernels import TARGETS

ROOT = Path(__file__).resolve().parent.parent
PREBUILT = ROOT / "kernels/prebuilt"

RESOURCES = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r"\s+ptxas info\s+: Used (\d+) registers"
)
FUNCTION = re.compile(r"^\.text\.(\w+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("tools", type=Path, help="the folder that the packages were installed to")
    arguments.add_argument("--table", action="store_true")
    arguments = arguments.parse_args()
    budgets = json.loads((ROOT / "kernels/budgets.json").read_text())
    mistakes, seen = [], set()
    for image in sorted(PREBUILT.glob("*.ptx")):
        for target in TARGETS:
            for kernel, found in assembled(arguments.tools, image, target).items():
                seen.add(kernel)
                if arguments.table:
                    print(f"{kernel:28} {target:7} {found['registers']:4} registers, {found['total']:6} instructions")
                mistakes += [f"{kernel} on {target}: {what}" for what in held(found, budgets.get(kernel))]
    mistakes += [f"{kernel}: a budget without a kernel" for kernel in budgets.keys() - seen]
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    if not mistakes:
        print(f"{len(seen)} kernels on {len(TARGETS)} targets: no spill, within their budgets")
    return len(mistakes) > 0


def assembled(tools, image, target):
    """Registers, memory and instructions of each kernel of an image."""
    said, text = disassembled(tools, image, target)
    kernels = {}
    for name, stack, stores, loads, registers in RESOURCES.findall(said):
        kernels[name] = {"registers": int(registers), "local": int(stack) + int(stores) + int(loads)}
    name = None
    for label, opcode in FUNCTION.findall(text):
        name = label or name
        if label:
            kernels[name] |= {"opcodes": collections.Counter(), "total": 0}
        elif opcode != "NOP":
            kernels[name]["opcodes"][opcode] += 1
            kernels[name]["total"] += 1
    return kernels


def disassembled(tools, image, target):
    """What the assembler says of an image, and the instructions that it makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "image.cubin"
        said = run(tool(tools, "ptxas"), "-v", f"-arch={target}", image, "-o", cubin)
        return said, run(tool(tools, "nvdisasm"), "-c", cubin)


def held(found, budget):
    """What is wrong with a kernel."""
    if budget is None:
        yield "has no budget in kernels/budgets.json"
        return
    if found["local"] or has(found, "LDL") or has(found, "STL"):
        yield "uses local memory"
    if found["registers"] > budget["registers"]:
        yield f"{found['registers']} registers, {budget['registers']} allowed"
    for opcode in budget.get("contains", []):
        if not has(found, opcode):
            yield f"no {opcode}"
    if "numbers" in budget:
        each = found["total"] / budget["numbers"]
        if each > budget["instructions_for_each"]:
            yield f"{each:.2f} instructions for each number, {budget['instructions_for_each']} allowed"


def has(found, opcode):
    return any(other == opcode or other.startswith(opcode + ".") for other in found["opcodes"])


def tool(tools, name):
    for path in sorted(tools.rglob(name)):
        if path.is_file():
            return path
    sys.exit(f"no {name} in {tools}: pip install as said in {Path(__file__).name}")


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{result.stderr}{result.stdout}")
    return result.stdout + result.stderr


if __name__ == "__main__":
    sys.exit(main())
