"""Makes what ships of CUDA sources: PTX of `kernels/*.cu` under `kernels/prebuilt/`, beside it all of it assembled
for each target; and PTX for the emulator's tests beside their sources.

    pip install nvidia-cuda-nvrtc-cu12==12.8.93 nvidia-cuda-nvcc-cu12==12.8.93
    python scripts/compile_kernels.py [--check | --output FOLDER]

Compiler and assembler are pinned, so the same source gives the same bytes everywhere; with --check nothing is
written, and the exit code says whether every file is what its source gives; with --output the PTX alone goes there,
and the assembler is not needed. No GPU and no CUDA installation are needed.

What is assembled is one module a target, so that a driver loads it by one call: the PTX of all kernels under one
header, without line tables. It is kept as xz; the digests in the manifest are those of the modules themselves,
since other versions of liblzma may give other bytes for the same ones.
"""

import argparse
import concurrent.futures
import ctypes
import hashlib
import importlib.util
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--generate-line-info"]
KERNELS = sorted((ROOT / "kernels").glob("*.cu"))
TESTS = sorted((ROOT / "tests/ptx-emu/tests/kernels").glob("*.cu"))
HEADERS = [*sorted((ROOT / "kernels").glob("*.cuh")), *sorted((ROOT / "ffi").glob("*.h"))]
PREBUILT = ROOT / "kernels/prebuilt"
TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
ASSEMBLER = "ptxas 12.8.93"
# The oldest PTX that has every instruction of the kernels: any driver that knows the calls of the program takes it.
VERSION = "7.0"
# Instructions are 16 bytes: a literal has its place among as many as its context.
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 4}]


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
    images = {source.stem: compiled(nvrtc, source) for source in KERNELS}
    modules = assembled(joined(images.values()))
    made = {PREBUILT / f"{stem}.ptx": content for stem, content in images.items()}
    made |= {PREBUILT / f"{target}.cubin.xz": content for target, content in modules.items()}
    made[PREBUILT / "manifest.json"] = manifest(nvrtc, made)
    made |= {source.with_suffix(".ptx"): compiled(nvrtc, source) for source in TESTS}
    if not arguments.check:
        PREBUILT.mkdir(exist_ok=True)
        for path, content in made.items():
            path.write_bytes(lzma.compress(content, filters=XZ) if is_packed(path) else content)
        return 0
    stale = [path for path, content in made.items() if not path.exists() or unpacked(path) != content]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what its source gives", file=sys.stderr)
    return len(stale) > 0


def is_packed(path):
    return path.suffix == ".xz"


def unpacked(path):
    content = path.read_bytes()
    return lzma.decompress(content) if is_packed(path) else content


def joined(images):
    """The PTX of all images as one module, without what only tools for people read."""
    header = f".version {VERSION}\n.target sm_80\n.address_size 64\n.extern .shared .align 128 .b8 memory[];\n"
    return header + "".join(kernels_of(image.decode()) for image in images)


def kernels_of(image):
    """The kernels of an image: no header, no line tables, no name of the dynamic shared memory, which all have."""
    text = image.split("\t.section", 1)[0]
    left_out = re.compile(r"\s*(//|\.(version|target|address_size|extern|file|loc)\b)")
    return "".join(line for line in text.splitlines(keepends=True) if not left_out.match(line))


def assembled(ptx):
    """A module for each target."""
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor() as pool:
        source = Path(folder) / "kernels.ptx"
        source.write_text(ptx)
        return dict(zip(TARGETS, pool.map(lambda target: assembled_for(source, target), TARGETS)))


def assembled_for(source, target):
    module = source.with_name(f"{target}.cubin")
    command = [assembler(), f"-arch={target}", "--warning-as-error", source, "-o", module]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{target}: {result.stderr}{result.stdout}")
    return module.read_bytes()


def assembler():
    """On the path of modules; the packages of compiler and assembler may lie in two folders of it."""
    for folder in sys.path:
        found = Path(folder, "nvidia/cuda_nvcc/bin/ptxas")
        if found.is_file():
            return found
    sys.exit("the assembler is missing: pip install nvidia-cuda-nvcc-cu12==12.8.93")


def manifest(nvrtc, artefacts):
    """What the artefacts were made of, and by what."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    must(nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    sources = {str(path.relative_to(ROOT)): path.read_bytes() for path in [*HEADERS, *KERNELS]}
    content = {
        "compiler": f"NVRTC {major.value}.{minor.value}",
        "assembler": ASSEMBLER,
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
    return lowered(made)


def lowered(ptx):
    """The same instructions as PTX of an older version, without the one hint that it does not know."""
    ptx = re.sub(rb"^\.version .*$", f".version {VERSION}".encode(), ptx, flags=re.MULTILINE)
    return re.sub(rb"^\s*\.pragma \"used_bytes_mask.*\n", b"", ptx, flags=re.MULTILINE)


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
