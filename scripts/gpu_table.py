"""Puts what `scripts/gpu_check.sh` found into one JSON and one Markdown table.

    python scripts/gpu_table.py FOLDER COMMIT
"""

import json
import sys
from pathlib import Path


def main():
    folder, commit = Path(sys.argv[1]), sys.argv[2]
    kernels = read(folder / "kernels.json", {"cases": []})
    anchors = read(folder / "anchors.json", {"seconds": {}})
    suites = {path.stem: path.read_text().strip() for path in sorted(folder.glob("*.result"))}
    card = (folder / "card.csv").read_text().strip().splitlines()
    training = [run for path in sorted(folder.glob("training_*.json")) for run in json.loads(path.read_text())]
    cases = [case | {"of_anchor": of_anchor(case, anchors["seconds"])} for case in kernels["cases"]]
    found = {"device": kernels.get("device"), "card": card, "commit": commit, "suites": suites, "cases": cases,
             "anchors": anchors, "training": training}
    (folder / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / "gpu.md").write_text(markdown(found))


def read(path, otherwise):
    return json.loads(path.read_text()) if path.exists() else otherwise


def of_anchor(case, seconds):
    """Speed as a share of the anchor's: products of cuBLAS's, attention of SDPA's, the rest of a copy's bandwidth."""
    for key, anchor in seconds.items():
        if key in case["case"] and "gb_per_s" not in case:
            return anchor / case["seconds"]
    if "gb_per_s" in case and "copy" in seconds:
        bytes_of_copy = 4 * 4096 * 4096
        return case["gb_per_s"] / (bytes_of_copy / seconds["copy"] / 1e9)
    return None


def markdown(found):
    lines = [f"# {found['device']}", "", f"Commit {found['commit']}; `scripts/gpu_check.sh run`.", ""]
    lines += [f"    {line}" for line in found["card"]] + [""]
    lines += [f"- {suite}: {result}" for suite, result in found["suites"].items()] + [""]
    lines += ["| case | us | TFLOP/s or GB/s | of the anchor |", "| --- | ---: | ---: | ---: |"]
    for case in found["cases"]:
        rate = case.get("tflops", case.get("gb_per_s", 0))
        share = "" if case["of_anchor"] is None else f"{case['of_anchor']:.2f}"
        lines.append(f"| {case['case']} | {case['seconds'] * 1e6:.1f} | {rate:.1f} | {share} |")
    lines += ["", "| training | weights | budget | tokens of a step | tokens/s | peak GiB |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: |"]
    for run in found["training"]:
        tokens = run["tokens"] * run["micro_batches"]
        lines.append(f"| {run['shape']} | {run['weights']} | {run['budget']} | {tokens} "
                     f"| {run['tokens_per_second']:.1f} | {run['peak'] / 2**30:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
