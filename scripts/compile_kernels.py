"""Makes PTX of CUDA sources: `a/b.cu` becomes `a/b.ptx`.

    pip install nvidia-cuda-nvrtc-cu12==12.8.93
    python scripts/compile_kernels.py [--check] SOURCE...

The compiler is pinned, so the same source gives the same bytes everywhere; with --check nothing is written, and
the exit code says whether every file is what its source gives. No GPU and no CUDA installation are needed.
"""

import argparse
import ctypes
import importlib.util
import sys
from pathlib import Path

OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--generate-line-info"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    arguments.add_argument("--check", action="store_true")
    arguments = arguments.parse_args()
    nvrtc = library()
    stale = []
    for source in arguments.sources:
        made = compiled(nvrtc, source)
        target = source.with_suffix(".ptx")
        if not arguments.check:
            target.write_bytes(made)
        elif not target.exists() or target.read_bytes() != made:
            stale.append(target)
    for target in stale:
        print(f"{target} is not what its source gives", file=sys.stderr)
    return len(stale) > 0


def library():
    package = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if package is None:
        sys.exit("the compiler is missing: pip install nvidia-cuda-nvrtc-cu12==12.8.93")
    folder = Path(next(iter(package.submodule_search_locations)))
    return ctypes.CDLL(str(folder / "lib" / "libnvrtc.so.12"))


def compiled(nvrtc, source):
    program = ctypes.c_void_p()
    # The line information would hold the working folder before a relative name.
    name = f"/{source.name}".encode()
    must(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None))
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
