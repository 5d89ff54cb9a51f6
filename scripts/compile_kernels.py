"""Makes PTX of CUDA sources: `kernels/*.cu` under `kernels/prebuilt/`, those of the emulator's tests beside them.

    pip install nvidia-cuda-nvrtc-cu12==12.8.93
    python scripts/compile_kernels.py [--check | --output FOLDER]

The compiler is pinned, so the same source gives the same bytes everywhere; with --check nothing is written, and
the exit code says whether every file is what its source gives; with --output the PTX goes there. No GPU and no
CUDA installation are needed.
"""

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--generate-line-info"]
KERNELS = sorted((ROOT / "kernels").glob("*.cu"))
TESTS = sorted((ROOT / "tests/ptx-emu/tests/kernels").glob("*.cu"))
HEADERS = [*sorted((ROOT / "kernels").glob("*.cuh")), *sorted((ROOT / "ffi").glob("*.h"))]
PREBUILT = ROOT / "kernels/prebuilt"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--output", type=Path, metavar="FOLDER")
    arguments = arguments.parse_args()
    nvrtc = library()
    # Line information has the working folder before every name.
    os.chdir("/")
    if arguments.output:
        for source in KERNELS:
            (arguments.output / f"{source.stem}.ptx").write_bytes(compiled(nvrtc, source))
        return 0
    made = {PREBUILT / f"{source.stem}.ptx": compiled(nvrtc, source) for source in KERNELS}
    made[PREBUILT / "manifest.json"] = manifest(nvrtc, made)
    made |= {source.with_suffix(".ptx"): compiled(nvrtc, source) for source in TESTS}
    if not arguments.check:
        PREBUILT.mkdir(exist_ok=True)
        for path, content in made.items():
            path.write_bytes(content)
        return 0
    stale = [path for path, content in made.items() if not path.exists() or path.read_bytes() != content]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what its source gives", file=sys.stderr)
    return len(stale) > 0


def manifest(nvrtc, artefacts):
    """What the artefacts were made of, and by what."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    must(nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    sources = {str(path.relative_to(ROOT)): path.read_bytes() for path in [*HEADERS, *KERNELS]}
    content = {
        "compiler": f"NVRTC {major.value}.{minor.value}",
        "options": OPTIONS,
        "sources": {name: sha256(content) for name, content in sources.items()},
        "artefacts": {path.name: sha256(content) for path, content in artefacts.items()},
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def library():
    package = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if package is None:
        sys.exit("the compiler is missing: pip install nvidia-cuda-nvrtc-cu12==12.8.93")
    folder = Path(next(iter(package.submodule_search_locations)))
    return ctypes.CDLL(str(folder / "lib" / "libnvrtc.so.12"))


def compiled(nvrtc, source):
    program = ctypes.c_void_p()
    name = source.name.encode()
    headers, count = [header.read_bytes() for header in HEADERS], len(HEADERS)
    contents = (ctypes.c_char_p * count)(*headers)
    names = (ctypes.c_char_p * count)(*(header.name.encode() for header in HEADERS))
    text_of_source = source.read_bytes()
    must(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text_of_source, name, count, contents, names))
    options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options)
    if failed:
        log = text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        sys.exit(f"{source}:\n{log.decode()}")
    made = text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    must(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return made


def text(program, size_of, get):
    size = ctypes.c_size_t()
    must(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    must(get(program, buffer))
    return buffer.value


def must(code):
    if code:
        sys.exit(f"NVRTC gives error {code}")


if __name__ == "__main__":
    sys.exit(main())
