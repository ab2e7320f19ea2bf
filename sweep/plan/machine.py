"""What this machine has: GPUs, cores, memory, disk. Imports no torch; each question has a time limit."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from core.base_models import base_model

NVIDIA_SMI_TIMEOUT_S = 5
TORCH_TIMEOUT_S = 120  # torch alone takes half a minute to import on a busy machine
REFUSED = 3  # exit code of sweep.plan.ask_torch
FIELDS = ("name", "memory.total", "memory.used", "driver_version", "mig.mode.current")
NVIDIA_DEVICE = Path("/dev/nvidiactl")
CGROUP = Path("/sys/fs/cgroup")  # a container's limits (cgroup v2)


class NotKnown(Exception):
    """Why torch did not answer a question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU by its driver; `sliced` when MIG is on, so that a process sees only a part of it."""

    name: str
    memory_bytes: int
    used_bytes: int
    driver: str
    sliced: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """The GPUs of this machine; `problem` says why there are none."""

    found: tuple[Gpu, ...] = ()
    problem: str = ""


def find_gpus() -> Gpus:
    """The GPUs that nvidia-smi finds and CUDA_VISIBLE_DEVICES allows; NVIDIA's only."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return Gpus(problem="CUDA_VISIBLE_DEVICES hides every GPU")
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    if visible and re.fullmatch(r"(\d+|GPU-[\w-]+)(,(\d+|GPU-[\w-]+))*", visible):
        command.append(f"--id={visible}")
    try:
        done = ask(command, NVIDIA_SMI_TIMEOUT_S)
    except FileNotFoundError:
        if NVIDIA_DEVICE.exists():
            return Gpus(problem=f"nvidia-smi is not installed, though {NVIDIA_DEVICE} is there")
        return Gpus(problem="no GPU found (there is no nvidia-smi)")
    except subprocess.TimeoutExpired:
        return Gpus(problem=f"nvidia-smi gave no answer in {NVIDIA_SMI_TIMEOUT_S} s")
    except OSError as error:
        return Gpus(problem=f"nvidia-smi cannot be run ({error.strerror})")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        said = next(iter((done.stderr + done.stdout).splitlines()), "nothing")
        return Gpus(problem=f"nvidia-smi sees no GPU; it says: {said.strip()}")
    try:
        return Gpus(found=tuple(_gpu(line) for line in lines))
    except ValueError:
        return Gpus(problem=f"nvidia-smi's answer cannot be read: {lines[0][:80]}")


def refusal(backbone: str, device: str, precision: str) -> str:
    """Why a base model cannot train here, by a worker's torch; empty where it can. Raises NotKnown."""
    if not base_model(backbone).needs_gpu and precision != "fp16" and device in ("auto", "cpu"):
        return ""  # it runs everywhere: no need to wait seconds for torch
    done = ask_torch("place", backbone, device, precision, timeout_s=TORCH_TIMEOUT_S)
    return done.stdout.strip().splitlines()[-1] if done.returncode else ""


def ask_torch(*arguments: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run sweep/plan/ask_torch.py with these arguments; its code is 0 or REFUSED. Raises NotKnown."""
    try:
        done = ask([sys.executable, "-P", "-m", "sweep.plan.ask_torch", *arguments], timeout_s)
    except subprocess.TimeoutExpired:
        raise NotKnown(f"torch gave no answer in {timeout_s} s") from None
    except OSError as error:
        raise NotKnown(f"Python cannot be started ({error.strerror})") from None
    if done.returncode not in (0, REFUSED):
        said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise NotKnown(f"torch cannot be asked: {said[-1]}")
    return done


def ask(command: list[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run a program that may hang in a driver, where even SIGKILL has no effect: it is then not waited for.

    Raises TimeoutExpired, OSError.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _gpu(line: str) -> Gpu:
    name, total_mib, used_mib, driver, mig = (field.strip() for field in line.rsplit(",", len(FIELDS) - 1))
    return Gpu(
        name=name,
        memory_bytes=int(total_mib) * 2**20,
        used_bytes=int(used_mib) * 2**20,
        driver=driver,
        sliced=mig == "Enabled",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Host memory that this process may use, in bytes."""

    total_bytes: int
    free_bytes: int


def host_memory() -> Memory:
    """The machine's memory, or a container's limit (cgroup v2) where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux counts as available also what the file cache can free
        found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else free
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and (allowed := limit.read_text().strip()) != "max":
        total = min(total, int(allowed))
        free = min(free, total - int(used.read_text()))
    return Memory(total_bytes=total, free_bytes=free)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def free_disk_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free
