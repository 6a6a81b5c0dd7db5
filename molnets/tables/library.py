"""The engine's compiled library: built by the machine's C++ compiler when it is first needed.

A library is kept beside the sources, else in the user's cache, else in a temporary folder; its name
tells of the sources and the processor, so that none is ever taken for another.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "engine"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ["-std=gnu++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared",
         "-pthread"]  # fmt: skip
FOR_THIS_PROCESSOR = (["-march=native"], ["-mcpu=native"], [])  # the first that the compiler takes

pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
SIGNATURES = {  # of functions that end with _f and _d
    "network": (pointer, [whole, pointer, pointer, pointer, whole]),
    "free_network": (None, [pointer]),
    "work": (pointer, []),
    "free_work": (None, [pointer]),
    "find": (whole, [pointer, pointer, whole, pointer, whole, pointer, real, real, whole, whole]),
    "set_exchange": (None, [pointer, pointer]),
    "energies": (whole, [pointer, pointer, pointer, pointer, *[whole] * 3, *[pointer] * 3]),
    "virials_of_atoms": (None, [pointer, pointer, whole, pointer]),
    "gradients": (None, [*[pointer] * 6, whole, whole, *[pointer] * 3]),
    "update": (None, [pointer, pointer, pointer, whole]),
    "filters": (pointer, [pointer] * 5),
    "free_filters": (None, [pointer]),
    "splines": (None, [pointer, pointer, whole, *[pointer] * 3]),
    "step": (pointer, [pointer] * 3),
    "free_step": (None, [pointer]),
    "take_step": (real, [*[pointer] * 5, whole, whole]),
    "update_weights": (None, [pointer, whole, *[pointer] * 5]),
    "finite": (whole, [pointer, whole]),
}
COMMON_SIGNATURES = {
    "list_of": (pointer, [pointer, pointer, whole, real, whole, *[pointer] * 3, whole, whole]),
    "free_list": (None, [pointer]),
    "domain": (pointer, [pointer, pointer, whole, whole, pointer, real, whole, pointer]),
    "describe_domain": (None, [pointer] * 3),
    "give_rows": (None, [pointer, pointer, whole]),
    "is_symmetric": (whole, [pointer]),
    "same": (whole, [pointer, pointer, pointer, whole]),
}


if hasattr(os, "register_at_fork"):
    # OpenMP's threads, which torch works with, are not there in a child and are waited for without
    # end. The engine's own pool begins anew; with one thread torch asks for no others.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class NoLibraryError(RuntimeError):
    """There is no library, and the message says why."""


@cache
def library() -> ctypes.CDLL:
    """Return the library; it is compiled if it is not there yet.

    Raises:
        NoLibraryError: if there is no compiler, or it cannot compile the engine.
    """
    try:
        lib = ctypes.CDLL(str(_built()))
    except OSError as error:
        raise NoLibraryError(f"the compiled engine does not load: {error}") from error
    for name, (result, arguments) in SIGNATURES.items():
        for precision in "fd":
            function = getattr(lib, f"{name}_{precision}")
            function.restype, function.argtypes = result, arguments
    for name, (result, arguments) in COMMON_SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def prepare() -> None:
    """Compile the library if it is not there yet, and say what is done, or why it cannot be."""
    try:
        if not any((folder / _name()).is_file() for folder in _folders()):
            print(f"Compiling the engine with {_compiler()}, once: about 15 seconds.", flush=True)
        library()
    except NoLibraryError as error:
        print(f"The plain networks will compute, without the engine: {error}.")


def _compiler() -> str:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NoLibraryError("there is no C++ compiler")
    return compiler


def _built() -> Path:
    """Return the path of the library."""
    name, folders = _name(), _folders()
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    compiler = _compiler()
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                _compile(compiler, Path(place) / name)
                os.replace(Path(place) / name, folder / name)
                return folder / name
        except OSError:  # not to be written to
            continue
    place = Path(tempfile.mkdtemp(prefix="molnets-"))
    print(f"The compiled engine cannot be kept: no one may write to {folders[0]} "
          f"or {folders[-1]}.", file=sys.stderr)  # fmt: skip
    _compile(compiler, place / name)
    return place / name


def _folders() -> list[Path]:
    """Return where a library may be kept, the best place first."""
    cache_folder = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache")
    return [SOURCES / "__pycache__", Path(cache_folder) / "molnets"]


def compiler_version() -> str:
    """Return what the compiler says that it is."""
    result = subprocess.run(
        [*shlex.split(_compiler()), "--version"], capture_output=True, text=True
    )
    return result.stdout.splitlines()[0]


def _name() -> str:
    """Return the library's name: a hash of sources, flags, processor, and the compiler if named."""
    parts = [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*"))]
    parts += [os.environ.get("CXX", "").encode(), " ".join(FLAGS).encode(), _processor()]
    return f"engine-{hashlib.sha256(bytes(1).join(parts)).hexdigest()[:16]}.so"


def _processor() -> bytes:
    """Return what the processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode() + platform.machine().encode()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def _compile(compiler: str, target: Path) -> None:
    if sys.stderr.isatty():
        print("Compiling the engine, once: about 15 seconds.", file=sys.stderr)
    for native in FOR_THIS_PROCESSOR:
        command = [
            *shlex.split(compiler),
            *FLAGS,
            *native,
            str(SOURCES / "engine.cpp"),
            "-o",
            str(target),
        ]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise NoLibraryError(f"the C++ compiler {compiler!r} does not run") from error
        if result.returncode == 0:
            return
    lines = result.stderr.strip().splitlines() or [f"{compiler} ended with {result.returncode}"]
    raise NoLibraryError(f"the engine does not compile: {lines[0]}")
