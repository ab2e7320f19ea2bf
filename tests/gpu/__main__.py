"""`make gpu`: what Kolors' true shape costs on this GPU, ours and the naive way, and whether numbers agree.

`python -m tests.gpu` needs a CUDA GPU and no weights, ends within 9 minutes, prints one table and writes it
to $OUT/gpu.json (./runs/gpu.json without OUT). `--self-test` does all of it at toy shape on the CPU, within a
minute. Ends with 1 if a number is wrong or a part is broken; a setting that does not fit into memory is no
failure.
"""

import argparse
import logging
import os
import platform
import signal
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

BUDGET_S, HARD_STOP_S = 480.0, 515.0
PACKAGES = ("torch", "diffsynth", "peft", "lightning", "transformers")


def main(arguments: list[str]) -> int:
    started_s = time.perf_counter()  # before torch is imported, which takes its time
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--self-test", action="store_true", help="toy shape on the CPU: does the command itself work?"
    )
    parser.add_argument(
        "--budget-s", type=float, default=BUDGET_S, help="seconds after which no further row is begun"
    )
    options = parser.parse_args(arguments)

    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import torch

    from tests.gpu.bench import Bench, Plan, TimeUpError
    from tests.gpu.shapes import KOLORS, TOY
    from tests.gpu.table import Findings

    if not options.self_test and not torch.cuda.is_available():
        print(
            "no CUDA card here; `python -m tests.gpu --self-test` checks the command itself", file=sys.stderr
        )
        return 1
    device = torch.device("cpu" if options.self_test else "cuda")
    plan = Plan(
        shape=TOY if options.self_test else KOLORS,
        device=device,
        compiler="eager" if options.self_test else "inductor",
        precisions=("fp32", "bf16") if options.self_test else ("fp16", "bf16"),
        started_s=started_s,
        budget_s=options.budget_s,
    )
    findings = Findings(machine=_machine(device))
    signal.signal(signal.SIGALRM, _raise(TimeUpError))
    signal.setitimer(
        signal.ITIMER_REAL, options.budget_s + HARD_STOP_S - BUDGET_S - (time.perf_counter() - started_s)
    )
    try:
        Bench(plan, findings).run()
    except TimeUpError:
        findings.dropped.append("everything after the last row: the time was up")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        findings.machine["took_s"] = round(time.perf_counter() - started_s)
        _write(findings.to_json(plan.precisions[0]))
        print(findings.to_text(plan.precisions[0]))
    return 0 if findings.passed else 1


def _machine(device: Any) -> dict[str, Any]:
    import torch

    card = {"device": platform.processor() or platform.machine()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return card | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _raise(error: type[BaseException]) -> Any:
    def stop(*_: Any) -> None:
        raise error

    return stop


def _write(findings: dict[str, Any]) -> None:
    from core.files.files import write_json

    path = Path(os.environ.get("OUT", "runs")) / "gpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
