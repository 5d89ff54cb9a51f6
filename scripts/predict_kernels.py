"""Predicts, without a GPU, how fast each kernel is on three cards, and holds it against `kernels/predictions.json`.

    pip install --target target/ptxas nvidia-cuda-nvcc-cu12==12.8.93 nvidia-cuda-nvdisasm==13.5.37
    python scripts/predict_kernels.py target/ptxas [--json | --check | --bless]
    python scripts/predict_kernels.py [--json]          as it is kept, without assembling
    python scripts/predict_kernels.py --cases [--json]
    python scripts/predict_kernels.py --step [--json]
    python scripts/predict_kernels.py --self-test

The prebuilt PTX is assembled for each target, and a model of an SM executes what came of it: the main loop of each
kernel in its steady state, as many blocks as an SM has room for (`sm_model/machine.py`). For a kernel with tensor
instructions the share is that of the dense bf16 peak, for the others that of DRAM's bandwidth. What binds is the
limit that alone would allow least, or latency where the model stays well below all of them: instructions that wait
for each other, and warps at barriers.

--cases and --step go on from the kept figures, by the chain of `sm_model/cases.py`: rounds of the main loop, blocks
dealt to SMs with a first fill and an end each, the tail, and the bytes of DRAM that the order of tiles makes.

How good it is. Nothing of it was measured on the kernels themselves. A forward attention loop whose speed is published
(0.32 to 0.34 of an H100's peak) comes out at 0.26: where latency binds, figures for an H100 are 20 to 25 % too low.
On GeForce, where tensor instructions bind, they should be within 10 %. Two choices of the model were made with the
shares of an independent review in view, so that the tests find both alike is no proof of either. Assumed, and nowhere
computed: clocks, the share of a copy's bandwidth that kernels on rows reach, L2's rate, and every latency. So a
prediction ranks versions of a kernel and names its limit; a measurement decides.

--check fails where a kernel got worse than its entry: more than 1 % of its share lost, or more instructions for 64
tensor instructions. The same PTX gives the same figures to the last digit.
"""

import argparse
import dataclasses
import json
import multiprocessing
import re
import sys
import unittest
from pathlib import Path

from check_kernels import PREBUILT, RESOURCES, ROOT, disassembled
from sm_model import cases, sass, step
from sm_model.cards import CARDS, TARGETS
from sm_model.kernels import Figure, figure

KEPT = ROOT / "kernels/predictions.json"
THREADS = re.compile(r"\.entry (\w+)\(.*?\.maxntid (\d+)", re.DOTALL)
TOLERANCE = 0.01


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("tools", type=Path, nargs="?", help="the folder that the packages were installed to")
    for name in ("json", "check", "bless", "cases", "step", "self-test"):
        arguments.add_argument(f"--{name}", action="store_true")
    wanted = arguments.parse_args()
    if wanted.self_test:
        return not unittest.main("sm_model.tests", argv=[sys.argv[0]], exit=False).result.wasSuccessful()
    if not wanted.tools and (wanted.check or wanted.bless):
        arguments.error("the folder of the tools is missing")
    figures = found(wanted.tools) if wanted.tools else kept()
    if wanted.bless:
        KEPT.write_text(text_of(figures))
    elif wanted.check:
        return held(figures, kept())
    elif wanted.cases:
        print_cases(figures, wanted.json)
    elif wanted.step:
        print_steps(figures, wanted.json)
    elif wanted.json:
        print("\n".join(json.dumps(line_of(each)) for each in figures))
    else:
        print_kernels(figures)
        print()
        print_steps(figures, False)
    return 0


def found(tools):
    """The figures of all kernels on all targets."""
    images = [(tools, image) for image in sorted(PREBUILT.glob("*.ptx"))]
    with multiprocessing.Pool() as pool:
        kernels = [kernel for image in pool.imap(assembled, images) for kernel in image]
        figures = [each for of_kernel in pool.imap(figures_of, kernels) for each in of_kernel]
    return sorted(figures, key=lambda each: (each.kernel, each.target))


def assembled(job):
    """Each kernel of an image with its threads, and its registers and instructions on each target."""
    tools, image = job
    kernels = {name: (name, int(threads), {}) for name, threads in THREADS.findall(image.read_text())}
    for target in TARGETS:
        said, listing = disassembled(tools, image, target)
        registers = {name: int(count) for name, *_, count in RESOURCES.findall(said)}
        for name, function in sass.functions(listing).items():
            kernels[name][2][target] = registers[name], function
    return list(kernels.values())


def figures_of(kernel):
    name, threads, targets = kernel
    return [figure(name, function, registers, threads, TARGETS[target])
            for target, (registers, function) in targets.items()]


def kept():
    return [Figure(**entry) for entry in json.loads(KEPT.read_text())]


def text_of(figures):
    lines = ",\n".join("  " + json.dumps(dataclasses.asdict(each)) for each in figures)
    return f"[\n{lines}\n]\n"


def held(figures, entries):
    """Says where a kernel is worse than its entry, and whether there is such a one."""
    figures, entries = ({(each.kernel, each.target): each for each in some} for some in (figures, entries))
    mistakes = [f"{kernel} on {target}: no entry" for kernel, target in figures.keys() - entries.keys()]
    gone = entries.keys() - figures.keys()
    mistakes += [f"{kernel} on {target}: an entry without a kernel" for kernel, target in gone]
    for key in figures.keys() & entries.keys():
        mistakes += [f"{key[0]} on {key[1]}: {what}" for what in worse(figures[key], entries[key])]
    for mistake in sorted(mistakes):
        print(mistake, file=sys.stderr)
    if not mistakes:
        print(f"{len(figures)} predictions: none worse than its entry")
    return len(mistakes) > 0


def worse(now, entry):
    if now.share < entry.share * (1 - TOLERANCE):
        yield f"share of the peak {entry.share} in its entry, {now.share} found"
    if entry.tensor and now.tensor and now.instructions_per_64_mma > entry.instructions_per_64_mma:
        yield (f"{entry.instructions_per_64_mma} instructions for 64 tensor instructions in its entry, "
               f"{now.instructions_per_64_mma} found")


def line_of(each):
    return {
        "kernel": each.kernel, "target": each.target, "registers": each.registers, "blocks": each.residents,
        "instructions_per_64_mma": each.instructions_per_64_mma, "share_of_peak": each.share, "limits": each.limits,
        "bound": each.bound,
    }


def print_kernels(figures):
    print(f"{'kernel':27}{'target':7}{'registers':>9}{'blocks':>7}{'instr/64 mma':>13}{'share':>7}  bound: limits")
    for each in figures:
        executed = each.instructions_per_64_mma or "-"
        limits = ", ".join(f"{name} {limit:.2f}" for name, limit in each.limits.items())
        print(f"{each.kernel:27}{each.target:7}{each.registers:9}{each.residents:7}{executed:>13}{each.share:7.3f}"
              f"  {each.bound}: {limits}")


def print_cases(figures, as_json):
    seconds = {card.name: cases.bench(cases.Predictor(card, figures)) for card in CARDS}
    if as_json:
        for name in next(iter(seconds.values())):
            print(json.dumps({"case": name, "seconds": {card: times[name] for card, times in seconds.items()}}))
        return
    print(f"{'microseconds':52}" + "".join(f"{card:>9}" for card in seconds))
    for name in next(iter(seconds.values())):
        print(f"{name:52}" + "".join(f"{times[name] * 1e6:9.0f}" for times in seconds.values()))


def print_steps(figures, as_json):
    steps = [step.Step(cases.Predictor(card, figures), kept) for card in CARDS for kept in (False, True)]
    if as_json:
        print("\n".join(json.dumps(each.as_dict()) for each in steps))
        return
    names = [*step.CATEGORIES, "total", "tok/s", "of FLOPs"]
    print(f"{'ms of a step':18}" + "".join(f"{name:>12}" for name in names))
    for each in steps:
        how = "all kept" if each.kept else "recompute"
        milliseconds = [*(each.seconds[name] * 1e3 for name in step.CATEGORIES), each.total * 1e3]
        print(f"{each.card.name + ', ' + how:18}" + "".join(f"{number:12.1f}" for number in milliseconds)
              + f"{step.TOKENS / each.total:12.0f}{each.share:12.2f}")


if __name__ == "__main__":
    sys.exit(main())
