"""Puts what `scripts/gpu_check.sh` has found so far into one JSON and one Markdown table.

    python scripts/gpu_table.py FOLDER

Any of the files in FOLDER may be missing: the table says of every part that is, why. `steps.tsv` names all steps
and how they ended; each has what it said in NAME.txt beside its results.
"""

import json
import os
import re
import statistics
import sys
from pathlib import Path

# The steps that train, by what is kept for the way back and where the weights are.
RUNS = ("kept", "inputs", "streamed")


def main():
    folder = Path(sys.argv[1])
    found = collected(folder)
    write(folder / "gpu.json", json.dumps(found, indent=2) + "\n")
    write(folder / "gpu.md", markdown(found))


def write(path, text):
    """At once or not at all: whoever is interrupted leaves the table before."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


# ---- what there is ---------------------------------------------------------------------------------------------------


def collected(folder):
    bench, anchors = read_json(folder / "bench.json"), read_json(folder / "anchors.json")
    predicted = predictions(folder / "predictions.jsonl", bench.get("device", ""))
    training = {name: run for name in RUNS for run in read_json(folder / f"training_{name}.json", [])}
    return {
        "card": card(folder, bench), "commit": read(folder / "commit").strip(),
        "command": read(folder / "command").strip(), "clocks": clocks(folder / "clocks.csv"),
        "steps": steps(folder), "doctor": read(folder / "doctor.txt"), "compiled": read_json(folder / "compiled.json"),
        "compiled_told": read(folder / "compiled.txt"), "kernels": kernels(folder),
        "cases": cases(bench, anchors, predicted), "libraries": anchors.get("libraries", {}), "training": training,
        "profile": profile(read(folder / "profile.txt")),
    }


def read(path):
    return path.read_text(errors="replace") if path.is_file() else ""


def read_json(path, otherwise=None):
    return parsed(read(path), otherwise)


def parsed(text, otherwise=None):
    """A text that is not there or not whole is as good as an empty one."""
    try:
        return json.loads(text)
    except ValueError:
        return {} if otherwise is None else otherwise


def rows(path, columns):
    """Lines of a table; one that is being written is not there yet."""
    lines = [line.split("\t") for line in read(path).splitlines()]
    return [line for line in lines if len(line) == columns]


def steps(folder):
    """Name by name as planned; of the lines of a name, the last one counts."""
    found = {}
    for name, outcome, seconds, limit in rows(folder / "steps.tsv", 4):
        found[name] = {"outcome": outcome, "seconds": int(seconds), "limit": int(limit)}
    for name, step in found.items():
        if step["outcome"] not in ("passed", "not reached"):
            step["why"] = reason(read(folder / f"{name}.txt"))
    return found


# Where a program says what went wrong, what says most first: a panic, its own error, Python's, a test's name.
SIGNS = ["panicked", "error:", "Error", "FAILED"]


def reason(told):
    """The line that says what went wrong, with the one behind it where a panic says more."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    for sign in SIGNS:
        for number, line in enumerate(lines):
            if sign in line:
                return " ".join(lines[number:number + (2 if line.endswith(":") else 1)])[:300]
    return lines[-1][:300] if lines else "it said nothing"


def kernels(folder):
    """Outcome of each test of a kernel, in the order of the list."""
    ended = {row[0]: row[1:] for row in rows(folder / "kernels.tsv", 4)}
    return [kernel(folder, name, ended.get(name)) for name in read(folder / "kernels.list").split()]


def kernel(folder, name, ended):
    if ended is None:
        return {"test": name, "outcome": "not run"}
    status, begun, end = int(ended[0]), *(float(time.replace(",", ".")) for time in ended[1:])
    outcome = {0: "proven", 124: "hung", 137: "hung"}.get(status, "failed")
    found = {"test": name, "outcome": outcome, "seconds": round(end - begun, 2)}
    if outcome != "proven":
        told = read(folder / "kernels" / f"{name.replace('::', '.')}.txt")
        found["why"] = reason(told) if outcome == "failed" else f"no end within {end - begun:.0f} s"
        found["told"] = told[:2000]
    return found


def card(folder, bench):
    if "device" in bench:
        major, minor = bench["driver"] // 1000, bench["driver"] % 1000 // 10
        return f"{bench['device']}, compute capability {bench['compute_capability']}, CUDA {major}.{minor}"
    doctor = [line for line in read(folder / "doctor.txt").splitlines() if line.startswith("GPU")]
    return doctor[0].removeprefix("GPU").strip() if doctor else "a card that did not tell its name"


def clocks(path):
    """Of the samples that nvidia-smi took: the multiprocessors' clock, the memory's, power and temperature."""
    samples = [[cell.strip() for cell in line.split(",")] for line in read(path).splitlines()]
    samples = [sample for sample in samples if len(sample) == 7]
    if not samples:
        return None
    busy = [sample for sample in samples if sample[6].isdigit() and int(sample[6]) > 0] or samples

    def spread(column):
        numbers = [float(sample[column]) for sample in busy if sample[column].replace(".", "", 1).isdigit()]
        return [min(numbers), statistics.median(numbers), max(numbers)] if numbers else None

    return {"card": samples[0][0], "driver": samples[0][1], "samples": len(samples), "sm_mhz": spread(2),
            "memory_mhz": spread(3), "watts": spread(4), "celsius": spread(5)}


def cases(bench, anchors, predicted):
    measured = {case["case"]: case for case in bench.get("cases", [])}
    planned = bench.get("planned", [])
    found = [measured.get(name, {"case": name, "failed": "not reached"}) for name in planned]
    found += decoding(measured)
    others = anchors.get("cases", {})
    copied = copy_bandwidth(measured, others)
    for case in found:
        case["anchors"] = others.get(case["case"]) or beside_a_copy(case, copied)
        case["predicted"] = predicted.get(case["case"])
    return found


def copy_bandwidth(measured, others):
    """Of the plain copy that is an anchor, in GB/s."""
    for name, case in measured.items():
        for anchor in others.get(name, []) if name.startswith("copy/") else []:
            if "seconds" in anchor and "seconds" in case:
                return case["gb_per_s"] * case["seconds"] / anchor["seconds"]
    return None


def beside_a_copy(case, bandwidth):
    """What moves bytes and has no anchor of its own is held against a copy of as many."""
    if bandwidth is None or "gb_per_s" not in case or case["case"].startswith("launches/"):
        return []
    return [{"by": "a copy", "seconds": case["seconds"] * case["gb_per_s"] / bandwidth}]


# Bytes that are moved to decode a weight: its value in bf16, its code, and its share of both scales.
BYTES_DECODED = 2 + 1 / 2 + 1 / 64 + 4 / (64 * 256)


def decoding(measured):
    """No operation decodes alone: its time is what four-bit weights add to the product of dense ones."""
    name = "Nt/4096x14336x4096"
    both = [measured.get(f"matmul {right} {name}", {}).get("seconds") for right in ("Dense", "Nf4")]
    if None in both or both[0] >= both[1]:
        return []
    rows, cols = map(int, name.split("x")[1:])
    seconds = both[1] - both[0]
    return [{"case": f"dequantize/{rows}x{cols}", "seconds": seconds,
             "gb_per_s": rows * cols * BYTES_DECODED / seconds / 1e9}]


def predictions(path, device):
    """Seconds that were predicted of each case, on the card whose name is part of the device's."""
    found = {}
    for line in read(path).splitlines():
        prediction = parsed(line)
        for card, seconds in prediction.get("seconds", {}).items():
            if card.lower() in device.lower():
                found[prediction["case"]] = seconds
    return found


# A row of the table of `--profile`: name, calls, seconds and share of the run.
PROFILED = re.compile(r"^  (\S.*?) +([\d,]+) +(\d+\.\d{3}) +\d+\.\d", re.MULTILINE)


def profile(told):
    _, _, behind = told.partition("\nprofile ")
    return [{"name": name, "calls": int(calls.replace(",", "")), "seconds": float(seconds)}
            for name, calls, seconds in PROFILED.findall(behind)]


# ---- how it looks ----------------------------------------------------------------------------------------------------


def markdown(found):
    parts = [heading(found), step_table(found), doctor(found), kernel_table(found), case_table(found),
             training_table(found), profile_table(found)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def heading(found):
    lines = [f"# {found['card']}", "", f"Commit {found['commit']}; `{found['command']}`."]
    if (seen := found["clocks"]) is None:
        return lines + ["Clocks: nvidia-smi gave none."]
    units = [("sm_mhz", "multiprocessors", "MHz"), ("memory_mhz", "memory", "MHz"), ("watts", "power", "W"),
             ("celsius", "temperature", "C")]
    spreads = [f"{name} {'/'.join(f'{x:.0f}' for x in seen[key])} {unit}" for key, name, unit in units if seen[key]]
    return lines + [f"{seen['card']}, driver {seen['driver']}; least/median/most of {seen['samples']} samples: "
                    f"{', '.join(spreads)}."]


def table(columns, rows):
    """Columns whose name ends with a space are flush right."""
    lines = [f"| {' | '.join(column.strip() for column in columns)} |",
             f"| {' | '.join('---:' if column.endswith(' ') else '---' for column in columns)} |"]
    return lines + [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]


def step_table(found):
    cells = [(name, step["outcome"], step["seconds"], step["limit"], step.get("why", ""))
             for name, step in found["steps"].items()]
    return ["## Steps", ""] + table(["step", "outcome", "seconds ", "limit ", "why"], cells)


def doctor(found):
    told = found["compiled_told"]
    # The longer answer repeats the shorter one, unless there is none.
    told = told if found["compiled"] else found["doctor"] + told
    told = [f"    {line}".rstrip() for line in told.splitlines()]
    return ["## What the program finds", ""] + (told or [missing(found, "doctor")])


def missing(found, step):
    """Why there is nothing of a step."""
    if (state := found["steps"].get(step)) is None:
        return "Nothing: it was not asked for."
    return f"Nothing: the step `{step}` {state['outcome']}. {state.get('why', '')}".strip()


def kernel_table(found):
    tests = found["kernels"]
    if not tests:
        return ["## Kernels", "", missing(found, "kernels")]
    count = {outcome: sum(test["outcome"] == outcome for test in tests)
             for outcome in ("proven", "failed", "hung", "not run")}
    bad = [(test["test"], test["outcome"], test.get("why", "")) for test in tests if test["outcome"] != "proven"]
    summary = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
    return ["## Kernels", "", f"{summary}."] + (["", *table(["test", "outcome", "why"], bad)] if bad else [])


def case_table(found):
    if not found["cases"]:
        return ["## Speed", "", missing(found, "bench")]
    columns = ["case", "us ", "TFLOP/s or GB/s ", "share of the anchor ", "anchor", "predicted us ",
               "measured / predicted "]
    lines = ["## Speed", "", "An anchor's share is its time divided by ours: more than 1 is faster than the library."]
    lines += [missing(found, "anchors")] if not any(case["anchors"] for case in found["cases"]) else []
    return lines + [""] + table(columns, [case_row(case) for case in found["cases"]])


def case_row(case):
    best = min((anchor for anchor in case["anchors"] if "seconds" in anchor), key=lambda a: a["seconds"], default=None)
    by = best["by"] if best else "; ".join(f"{anchor['by']}: {anchor['failed']}" for anchor in case["anchors"])
    expected = case["predicted"]
    predicted = "" if expected is None else micros(expected)
    if "seconds" not in case:
        return [case["case"], case["failed"], "", "", by, predicted, ""]
    rate = case.get("tflops", case.get("gb_per_s", 0))
    share = f"{best['seconds'] / case['seconds']:.2f}" if best else ""
    ratio = "" if expected is None else f"{case['seconds'] / expected:.2f}"
    return [case["case"], micros(case["seconds"]), f"{rate:.1f}", share, by, predicted, ratio]


def micros(seconds):
    return f"{seconds * 1e6:.1f}"


def training_table(found):
    runs = {name: run for name, run in found["training"].items() if "losses" in run}
    lines = ["## Training", ""]
    cells = [(name, run["shape"], run["weights"], run["keeps"], run["budget"], run["tokens"] * run["micro_batches"],
              f"{run['tokens_per_second']:.1f}", f"{run['peak'] / 2**30:.2f}", " ".join(map(str, run["losses"])))
             for name, run in runs.items()]
    if cells:
        lines += table(["run", "shape", "weights", "keeps", "budget ", "tokens of a step ", "tokens/s ", "peak GiB ",
                        "losses"], cells) + [""]
    return lines + [same_losses(runs)] + [f"{name}: {missing(found, name)}" for name in RUNS if name not in runs]


def same_losses(runs):
    """The promise that how a model is held in memory changes no bit of what it learns."""
    if len(runs) < 2:
        return "Losses: fewer than two runs to compare."
    distinct = {json.dumps([run["losses"], run["grad_norms"]]) for run in runs.values()}
    verdict = "equal bit for bit" if len(distinct) == 1 else "**DIFFERENT**"
    return f"Losses and norms of the gradients of {', '.join(runs)}: {verdict}."


def profile_table(found):
    if not found["profile"]:
        return ["## Where a step's time goes", "", missing(found, "profile")]
    total = sum(row["seconds"] for row in found["profile"])
    cells = [(row["name"], row["calls"], f"{row['seconds'] * 1e3:.1f}", f"{100 * row['seconds'] / total:.1f}")
             for row in found["profile"]]
    return ["## Where a step's time goes", ""] + table(["operation", "calls ", "ms ", "% "], cells)


if __name__ == "__main__":
    main()
