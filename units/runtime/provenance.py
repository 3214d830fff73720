"""Where a result comes from: hashes of inputs, files and models, the commit of this code, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

_EDGE = 1 << 20  # bytes of a weight file's start and end that its fingerprint reads


def digest(parts: Iterable[str | bytes], length: int = 12) -> str:
    """The first hexadecimal digits of SHA-256 over parts, one after the other.

    Args:
        parts: text, hashed as UTF-8 (names of files that are not Unicode as their bytes), or bytes. Where one part ends
            and the next begins is not hashed: parts that could run into each other need a separator, such as a newline.
        length: digits.
    """
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return state.hexdigest()[:length]


def content_hash(files: Mapping[str, Path]) -> str:
    """Hash of the names and contents of small files."""

    def parts() -> Iterable[str | bytes]:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            yield f"{name} {len(content)}\n"
            yield content

    return digest(parts())


def fingerprint(folder: Path) -> str:
    """Hash of the weight files of a model folder: their names, sizes, first and last megabyte.

    Raises: FileNotFoundError if the folder holds no safetensors file.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model: no .safetensors file in it")

    return weights_hash({str(path.relative_to(folder)): path for path in files})


def weights_hash(files: Mapping[str, Path]) -> str:
    """Hash of large files: their names, sizes, first and last megabyte."""

    def parts() -> Iterable[str | bytes]:
        for name, path in files.items():
            size = path.stat().st_size
            yield f"{name} {size}"
            with path.open("rb") as file:
                yield file.read(_EDGE)
                file.seek(max(0, size - _EDGE))
                yield file.read(_EDGE)

    return digest(parts())


def commit() -> str:
    """The commit of this code if it runs from a checkout ("-dirty" with local changes), else the installed version."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        try:
            done = subprocess.run(
                ["git", "describe", "--always", "--dirty", "--exclude=*"],
                cwd=root,
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done and done.returncode == 0:
            return done.stdout.strip()
    owners = metadata.packages_distributions().get("speechgpt")
    return f"version {metadata.version(owners[0])}" if owners else "unknown"


def machine(device: str = "cpu") -> str:
    """Processor and cores, such as "AMD EPYC 9B14, 2 cores", and the GPU if `device` is one."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    gpu = ""
    if device.startswith("cuda"):
        import torch

        gpu = f", {torch.cuda.get_device_name(device)}"
    return f"{name}, {os.cpu_count()} cores{gpu}"


def file_stamp(path: Path) -> str:
    """Name, size and time of change of a file: they differ if its content was replaced, and nothing is read."""
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}\n"
