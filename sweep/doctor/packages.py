"""Are the installed packages those that were tested together? Read from metadata; imports none of them."""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from core.files.install import CONSTRAINTS, PROJECT, install_command
from sweep.doctor.check import Check

PYTHON = (3, 11)


def check_python() -> Check:
    """Whether this Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return Check("missing", found, "Python 3.11 or later is needed")
    return Check("OK", f"{found} in {sys.prefix}")


def check_packages() -> Check:
    """Missing or out of range: the study cannot run; other than in constraints.txt: only a warning."""
    needed = requirements()
    here = {requirement.name: installed(requirement.name) for requirement in needed}
    wrong = [
        f"{each} (here: {found or 'not installed'})"
        for each in needed
        if not (found := here[each.name]) or not each.specifier.contains(found, prereleases=True)
    ]
    wrong += torch_pair_faults()
    if wrong:
        return Check("missing", "; ".join(wrong), install_command())
    tested = tested_versions()
    differing = [
        f"{name} {found} (tested: {tested[key]})"
        for name, found in here.items()
        if found and (key := canonicalize_name(name)) in tested and Version(found).public != tested[key]
    ]
    if differing:
        found = f"in range, but not as tested: {', '.join(differing)}"
        return Check("warn", found, f"{install_command()} brings the tested versions")
    ranges, all_tested = ("", ", all as tested") if tested else (" in their ranges", "")
    return Check("OK", f"{len(needed)} packages{ranges}, torch {here['torch']}{all_tested}")


def requirements() -> list[Requirement]:
    """What lora-sweep depends on: from pyproject.toml in a source tree, else from its metadata."""
    if PROJECT.exists():
        written = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        written = requires("lora-sweep") or []
    found = map(Requirement, written)
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def installed(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """Package -> version as in constraints.txt, by canonical name; empty if there is no such file."""
    if not CONSTRAINTS.exists():
        return {}
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    pinned = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): number for name, number in pinned}


def torch_pair_faults() -> list[str]:
    """torch and torchvision must be built alike: a +cpu torch beside a CUDA torchvision fails at import."""
    builds = {name: Version(found).local for name in ("torch", "torchvision") if (found := installed(name))}
    cpu_only = [name for name, local in builds.items() if local == "cpu"]
    alike = len(cpu_only) != 1 or len(builds) < 2
    return [] if alike else [f"{cpu_only[0]} is a +cpu build, its partner is not"]
