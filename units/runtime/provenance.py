"""Where a result comes from: hashes of files and models, the commit of this code, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

_EDGE = 1 << 20  # bytes of a weight file's start and end that its fingerprint reads


def content_hash(files: Mapping[str, Path]) -> str:
    """Hash of the contents of small files, and of what they are called here."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def fingerprint(folder: Path) -> str:
    """Hash of the weight files of a model folder: their names, sizes, first and last megabyte.

    Raises: FileNotFoundError if the folder holds no safetensors file.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model: no .safetensors file in it")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()[:12]


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


def as_it_lies(source: Path) -> str:
    """What tells a file from its former content without reading it."""
    found = source.stat()
    return f"{source} {found.st_size} {found.st_mtime_ns}\n"
