"""The name of a device, as a user writes it."""
import re

from core.errors import UserError


def checked_device(name: str) -> str:
    """Raises UserError on one that there cannot be."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"--device is {name!r}, but there is no such device (allowed: auto, cpu, cuda, cuda:1)")
    return name
