"""Questions to torch in a process of its own: it takes seconds to import, may hang or be broken.

`python -m sweep.plan.ask_torch gpu`, or `... place BACKBONE DEVICE PRECISION`. Nothing imports this module.
"""

import json
import sys
from collections.abc import Callable

from sweep.plan.machine import REFUSED


def gpu() -> None:
    """Print torch's version as JSON, and whether it multiplies on the GPU, where an unsupported one fails."""
    import torch

    said = {"version": torch.__version__, "built_for": torch.version.cuda, "well": False}
    if torch.cuda.is_available():
        ones = torch.ones(64, 64, device="cuda", dtype=torch.float16)
        said["well"] = float((ones @ ones).sum()) == 64.0**3
    print(json.dumps(said))


def place(backbone: str, device: str, precision: str) -> None:
    """Print why a base model cannot train here and exit with REFUSED; print nothing where it can."""
    from core.backbone.backbone import place_of

    try:
        place_of(backbone, device, precision)
    except ValueError as refusal:
        print(refusal)
        sys.exit(REFUSED)


if __name__ == "__main__":
    questions: dict[str, Callable[..., None]] = {"gpu": gpu, "place": place}
    questions[sys.argv[1]](*sys.argv[2:])
