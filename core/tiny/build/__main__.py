"""Train the tiny backbone from nothing: `python -m core.tiny.build [--stage vae|unet|loose|scorer]`.

Seeded, CPU only, about 40 minutes on two cores. Writes core/tiny/weights/*.safetensors (fp16) and
losses.json. The VAE and the scorer are trained on watercolour too, the UNet only on flat images and four
looks, so that watercolour is new to it.
"""

import argparse
import json
import logging
import random
import time

import torch

from core.backbone.backbone import set_number_modes
from core.tiny.build.scorer import build_scorer
from core.tiny.build.unet import build_loose, build_unet
from core.tiny.build.vae import build_vae
from core.tiny.files import WEIGHTS

log = logging.getLogger(__name__)
STAGES = {
    "vae": (build_vae, 0),
    "unet": (build_unet, 0),
    "loose": (build_loose, 1),
    "scorer": (build_scorer, 0),
}  # stage -> (what trains it, seed)


def main() -> None:
    """Run the stages in order; each writes its weights and a line of losses.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=list(STAGES), help="only this one (default: all, in order)")
    stage = parser.parse_args().stage
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    set_number_modes()
    WEIGHTS.mkdir(exist_ok=True)
    for name, (build, seed) in STAGES.items():
        if stage in (None, name):
            started = time.monotonic()
            torch.manual_seed(seed)
            random.seed(seed)
            _note(name, {**build(), "seconds": round(time.monotonic() - started)})


def _note(stage: str, figures: dict[str, float]) -> None:
    path = WEIGHTS / "losses.json"
    losses = json.loads(path.read_text()) if path.exists() else {}
    losses[stage] = {key: round(value, 4) for key, value in figures.items()}
    path.write_text(json.dumps(losses, indent=2) + "\n")
    log.info("%s: %s", stage, losses[stage])


if __name__ == "__main__":
    main()
