"""How fast a device probably is where nothing was measured on it: counted work over assumed speed. No torch.

Speed: the peak of NVIDIA's data sheets for dense fp16 with fp32 sums, times the share of it that training and
rendering reach. Hopper's shares were measured on an H100 (docs/measurements.md); the others are assumptions:
one image uses more of a smaller GPU.
"""

from dataclasses import dataclass

from core.base_models import CountedWork, MeasuredOnCpu
from sweep.plan.machine import Gpu
from sweep.plan.pace import Pace

COUNTED_MEGAPIXELS = 1024**2 / 1e6
READ_S = 0.1  # to read and hash a training image of a few megapixels; assumed

# Share of the peak in training one image at a time, and in rendering eight.
HOPPER, DATACENTER, WORKSTATION = (0.146, 0.287), (0.35, 0.35), (0.45, 0.45)
GPUS = {  # nvidia-smi's exact name -> peak TFLOP/s, shares
    "NVIDIA H200": (989, HOPPER),
    "NVIDIA H100 80GB HBM3": (989, HOPPER),
    "NVIDIA H100 NVL": (835, HOPPER),
    "NVIDIA H100 PCIe": (756, HOPPER),
    "NVIDIA A100-SXM4-80GB": (312, DATACENTER),
    "NVIDIA A100-SXM4-40GB": (312, DATACENTER),
    "NVIDIA A100 80GB PCIe": (312, DATACENTER),
    "NVIDIA A100-PCIE-40GB": (312, DATACENTER),
    "NVIDIA L40S": (362, DATACENTER),
    "NVIDIA RTX 6000 Ada Generation": (364, DATACENTER),
    "NVIDIA L40": (181, WORKSTATION),
    "NVIDIA L4": (121, WORKSTATION),
    "NVIDIA A10": (125, WORKSTATION),
    "NVIDIA RTX A6000": (155, WORKSTATION),
    "NVIDIA RTX A5000": (111, WORKSTATION),
    "NVIDIA GeForce RTX 5090": (209, WORKSTATION),
    "NVIDIA GeForce RTX 4090": (165, WORKSTATION),
    "NVIDIA GeForce RTX 4090 D": (147, WORKSTATION),
    "NVIDIA GeForce RTX 3090 Ti": (80, WORKSTATION),
    "NVIDIA GeForce RTX 3090": (71, WORKSTATION),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A pace and what it rests on; where `pace` is None, `basis` says what is not known."""

    pace: Pace | None
    basis: str


def estimate_on_gpu(work: CountedWork, gpu: Gpu, precision: str, checkpointing: bool) -> Estimate:
    """By the work counted for a model; no pace for a MIG slice, an unknown GPU or fp32."""
    if gpu.sliced:
        return not_known(f"{gpu.name} is cut into MIG slices, and how fast one is")
    if gpu.name not in GPUS:
        return not_known(f"how fast {gpu.name} is at this")
    if precision == "fp32":
        return not_known("how fast this GPU is in fp32")
    peak, shares = GPUS[gpu.name]
    row = "row with checkpointing" if checkpointing else "row"
    training, drawing = (peak * share for share in shares)
    basis = "as measured on an H100" if shares == HOPPER else "assumed"
    return Estimate(
        gpu_pace(work, gpu.name, checkpointing=checkpointing),
        f"counted work ({_step_tflop(work, checkpointing):g} TFLOP for a training {row}, "
        f"{work.forward_tflop} for a forward, at 1024 px) at {training:.0f} TFLOP/s in training and "
        f"{drawing:.0f} in drawing, shares of the GPU's peak of {peak} {basis}",
    )


def not_known(what: str, on: str = "on it") -> Estimate:
    """No estimate; `what` is the start of the sentence that says what is not known."""
    return Estimate(None, f"{what} cannot be known before a trial ran {on}")


def gpu_pace(work: CountedWork, gpu: str, *, checkpointing: bool = False) -> Pace:
    """`gpu` is a key of GPUS."""
    peak, (training, drawing) = GPUS[gpu]
    return Pace(
        row_s=_step_tflop(work, checkpointing) / (peak * training * COUNTED_MEGAPIXELS),
        forward_s=work.forward_tflop / (peak * drawing * COUNTED_MEGAPIXELS),
        score_s=work.score_s,
        image_s=READ_S + work.score_s + work.encoded_tflop / (peak * drawing),
    )


def _step_tflop(work: CountedWork, checkpointing: bool) -> float:
    return work.recomputed_step_tflop if checkpointing else work.step_tflop


def estimate_on_cpu(measured: MeasuredOnCpu) -> Estimate:
    """From times measured on another CPU, which is named in `basis`."""
    megapixels = measured.size_px**2 / 1e6
    return Estimate(
        Pace(
            row_s=measured.row_s / megapixels,
            forward_s=measured.forward_s / megapixels,
            score_s=measured.score_s,
            image_s=measured.image_s,
        ),
        "a rough guess: two cores of a server CPU at 2.6 GHz were measured, yours may well be two or three "
        "times off",
    )
