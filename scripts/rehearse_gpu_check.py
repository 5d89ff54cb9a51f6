"""Rehearses `scripts/gpu_check.sh run` on the emulated driver: whatever goes wrong, the table is there and names it.

    scripts/gpu_check.sh pack
    python scripts/rehearse_gpu_check.py FOLDER      # that has the emulator as libcuda.so

Each function below seeds a failure that a lent card may bring, and looks for it in the table. After each, no process
is left and no scratch file. Everything is as small as it can be: the point is the script, not the kernels.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = Path(sys.argv[1]).resolve()

# A model that the emulator trains in seconds, three kernels, and launches that are not looked into.
SMALL = {
    "GPU_CHECK_FLAGS": "--test", "GPU_CHECK_SHAPE": "toy", "GPU_CHECK_TOKENS": "16",
    "GPU_CHECK_BUDGETS": "128MiB 65976KiB 128MiB", "GPU_CHECK_KERNELS": "::(rmsnorm|rmsnorm_backward|sum_squares)$",
    "PTX_EMU_CHECKED": "0", "GPU_CHECK_KERNEL_SECONDS": "40",
}


def main():
    rehearsals = [nothing_is_seeded_but_torch_is_not_there, a_kernel_hangs, a_kernel_loses_the_device,
                  a_case_has_no_room, a_signal_ends_the_run, the_time_is_over, there_is_no_pack,
                  the_pack_is_of_other_sources, there_is_no_usable_card]
    lost = [rehearsal.__name__ for rehearsal in rehearsals if not is_kept(rehearsal)]
    print(f"{len(lost)} of the seeded failures lose the table" + "".join(f"\n  {name}" for name in lost))
    sys.exit(1 if lost else 0)


def is_kept(rehearsal):
    """Whether the table was there and as expected."""
    begun = time.monotonic()
    try:
        rehearsal()
    except (AssertionError, OSError, KeyError, ValueError) as error:
        SCRATCH.clear()
        print(f"FAILED {rehearsal.__name__}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"{rehearsal.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
    for folder in SCRATCH:
        shutil.rmtree(folder)
    SCRATCH.clear()
    return True


# Folders of the rehearsal that is going on; those of one that failed stay to be looked at.
SCRATCH = []


def scratch():
    SCRATCH.append(Path(tempfile.mkdtemp(prefix="rehearsal-")))
    return SCRATCH[-1]


# ---- the failures ----------------------------------------------------------------------------------------------------


def nothing_is_seeded_but_torch_is_not_there():
    # The suites of whole models take the emulator minutes; its own tests run them.
    run = Run(*"doctor compiled kernels instructions bench anchors store kept inputs streamed profile".split()).wait()
    expect(run.outcomes() == {name: "failed" if name == "anchors" else "passed" for name in run.steps()}, run)
    expect("no anchors without torch" in run.table, run)
    expect({test["outcome"] for test in run.found["kernels"]} == {"proven"}, run)
    expect(all("seconds" in case for case in run.found["cases"]) and len(run.found["cases"]) > 30, run)
    expect("kept, inputs, streamed: equal bit for bit" in run.table, run)
    expect(run.found["training"]["inputs"]["keeps"] == "inputs", run)
    expect(len(run.found["profile"]) > 5, run)


def a_kernel_hangs():
    run = Run("kernels", "bench", PTX_EMU_HANGS="rmsnorm", GPU_CHECK_KERNEL_SECONDS="4",
              GPU_CHECK_FLAGS="--test --only rmsnorm").wait()
    expect(run.kernels() == {"rmsnorm": "hung", "rmsnorm_backward": "proven", "sum_squares": "proven"}, run)
    expect(run.failed_cases() == ["rmsnorm forward/64x128"] and len(run.found["cases"]) == 2, run)
    expect("not done within" in run.table and "no end within" in run.table, run)


def a_kernel_loses_the_device():
    run = Run("kernels", "bench", PTX_EMU_SPOILS="sum_squares").wait()
    expect(run.kernels() == {"rmsnorm": "proven", "rmsnorm_backward": "proven", "sum_squares": "failed"}, run)
    bad = [f"launches/32 {how}" for how in ("one by one", "gathered")] + ["sum of squares/16384"]
    expect(sorted(run.failed_cases()) == sorted(bad), run)
    why = [test["why"] for test in run.found["kernels"] if test["outcome"] == "failed"]
    expect("panicked" in why[0] and "CUDA_ERROR_LAUNCH_FAILED" in why[0], run, why)


def a_case_has_no_room():
    run = Run("bench", PTX_EMU_MEMORY=str(NO_ROOM)).wait()
    expect(run.failed_cases() and len(run.failed_cases()) < len(run.found["cases"]) / 2, run)
    expect(all("not reached" not in case.get("failed", "") for case in run.found["cases"]), run)


# Of the emulated card: a 32nd stays free, 64 MiB are for the driver, and what is left is too little for AdamW.
NO_ROOM = ((64 << 20) + 200_000) * 32 // 31


def a_signal_ends_the_run():
    run = Run("doctor", "kernels", "bench", PTX_EMU_HANGS="rmsnorm", GPU_CHECK_KERNEL_SECONDS="60")
    run.wait_until(lambda: "hangs" in read(run.out / "kernels" / run.hanging()))
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    run.wait()
    expect(time.monotonic() - begun < 8 and run.process.returncode == 143, run)
    expect(run.outcomes() == {"doctor": "passed", "kernels": "cut off", "bench": "not reached"}, run)


def the_time_is_over():
    begun = time.monotonic()
    run = Run("doctor", "kernels", "bench", PTX_EMU_HANGS="rmsnorm", GPU_CHECK_KERNEL_SECONDS="60",
              GPU_CHECK_SECONDS="14").wait()
    expect(time.monotonic() - begun < 20, run)
    expect(run.outcomes() == {"doctor": "passed", "kernels": "timed out", "bench": "not reached"}, run)
    expect(run.kernels()["rmsnorm"] == "hung" and "not run" in run.kernels().values(), run)


def there_is_no_pack():
    expect_refusal("there is no target/gpu_check/pack.tar.xz", carried("scripts"))


def the_pack_is_of_other_sources():
    tree = carried("scripts", "Cargo.toml", "target/gpu_check")
    (tree / "Cargo.toml").write_text("[package]\n")
    expect_refusal("pack again", tree)


def there_is_no_usable_card():
    expect_refusal("the driver finds no GPU", PTX_EMU_DEVICES="0")
    expect_refusal("compute capability 7.5", PTX_EMU_CAPABILITY="75")
    expect_refusal("install driver", PTX_EMU_DRIVER="11080")


# ---- how they are seeded ---------------------------------------------------------------------------------------------


class Run:
    """A run of the script, with scratch space of its own."""

    def __init__(self, *steps, tree=ROOT, **environment):
        self.scratch = scratch()
        self.out = self.scratch / "out"
        (self.scratch / "tmp").mkdir()
        variables = {**os.environ, **SMALL, **environment, "LD_LIBRARY_PATH": str(EMULATOR),
                     "TMPDIR": str(self.scratch / "tmp"), "GPU_CHECK_STEPS": " ".join(steps)}
        self.log = open(self.scratch / "log", "w+")
        self.process = subprocess.Popen([tree / "scripts/gpu_check.sh", "run", self.out], env=variables,
                                        stdout=self.log, stderr=subprocess.STDOUT)

    def wait(self):
        self.process.wait(timeout=240)
        self.told, self.table = read(self.scratch / "log"), read(self.out / "gpu.md")
        self.found = json.loads(read(self.out / "gpu.json") or "{}")
        self.is_clean()
        return self

    def wait_until(self, condition):
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError("what the rehearsal waits for does not happen")

    def is_clean(self):
        """Nothing that this run has started is left, nor anything that it has unpacked."""
        left = [link for link in map(program, Path("/proc").glob("[0-9]*/exe")) if str(self.scratch) in link]
        expect(not left and not list((self.scratch / "tmp").iterdir()), self, f"left: {left}")

    def steps(self):
        return self.found["steps"]

    def outcomes(self):
        return {name: step["outcome"] for name, step in self.steps().items()}

    def kernels(self):
        return {test["test"].rsplit("::", 1)[-1]: test["outcome"] for test in self.found["kernels"]}

    def failed_cases(self):
        return [case["case"] for case in self.found["cases"] if "failed" in case]

    def hanging(self):
        """The file of what the kernel that hangs has said."""
        files = list((self.out / "kernels").glob("*.rmsnorm.txt"))
        return files[0].name if files else "none"


def expect(holds, run, why=""):
    if not holds:
        raise AssertionError(f"{why}\n{read(run.scratch / 'log')[:4000]}\n(all of it is in {run.scratch})")


def expect_refusal(what, tree=ROOT, **environment):
    """One line that says what to do, the status 1, and nothing written."""
    run = Run("doctor", tree=tree, **environment).wait()
    lines = run.told.strip().splitlines()
    expect(run.process.returncode == 1 and len(lines) == 1 and what in lines[0], run)


def carried(*paths):
    """A tree to which only a part was carried."""
    tree = scratch()
    for path in paths:
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, tree / path)
        else:
            shutil.copy(ROOT / path, tree / path)
    return tree


def program(link):
    try:
        return os.readlink(link)
    except OSError:
        return ""


def read(path):
    return path.read_text(errors="replace") if path.is_file() else ""


if __name__ == "__main__":
    main()
