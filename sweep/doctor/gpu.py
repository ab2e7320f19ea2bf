"""Is there a GPU for the study, can torch compute on it, and has it enough free memory?"""

import json

from core.base_models import base_model
from reports.units import size
from sweep.doctor.check import Check
from sweep.plan.machine import Gpu, NotKnown, ask_torch, find_gpus, refusal
from sweep.plan.plan import Plan

TORCH_LIMIT_S = 30


def check_gpu(plan: Plan) -> Check:
    """The GPUs, and whether torch can compute on them, which a child process finds out if there is one."""
    backbone, model, gpus = plan.study.backbone, base_model(plan.study.backbone), find_gpus()
    try:
        why = "" if model.needs_gpu else refusal(backbone, "auto", plan.study.precision)
    except NotKnown as unknown:
        return Check("warn", f"whether {backbone} can train here is not known: {unknown}")
    if why:
        return Check("missing", why, "lora-sweep run refuses it like this")
    if not gpus.found and not model.needs_gpu:
        return Check("OK", f"{gpus.problem}: {model.name} runs on the CPU, Kolors needs one")
    if not gpus.found:
        todo = f"{model.title} needs an NVIDIA GPU, 24 GB are enough; tiny runs without (lora-sweep run demo)"
        return Check("missing", gpus.problem, todo)
    names = ", ".join(f"{gpu.name} with {gpu.memory_bytes / 2**30:.0f} GB" for gpu in gpus.found)
    names += f", driver {gpus.found[0].driver}"
    if problem := torch_problem():
        return Check(
            "missing" if model.needs_gpu else "warn",
            f"{names}; {problem}",
            "a CUDA build of torch that fits this driver is needed (see docs/cloud.md); "
            "CUDA_VISIBLE_DEVICES must not hide the GPU",
        )
    return _check_gpu_memory(plan, gpus.found[0], names)


def torch_problem() -> str:
    """Why torch cannot compute on the GPU; empty when it can."""
    try:
        said = json.loads(ask_torch("gpu", timeout_s=TORCH_LIMIT_S).stdout.splitlines()[-1])
    except NotKnown as unknown:
        return str(unknown)
    built = f"torch {said['version']} ({'CUDA ' + said['built_for'] if said['built_for'] else 'no CUDA'})"
    return "" if said["well"] else f"{built} sees no GPU it can use"


def _check_gpu_memory(plan: Plan, gpu: Gpu, names: str) -> Check:
    if plan.memory is None:
        return Check("OK", f"{names}; torch computes on it")
    needed = plan.memory.least
    free = gpu.memory_bytes - gpu.used_bytes
    room = f"{size(free)} are free, about {size(needed)} are needed (estimate)"
    if free >= needed:
        return Check("OK", f"{names}; torch computes on it; {room}")
    todo = "another program holds memory of this GPU (see nvidia-smi)"
    if gpu.memory_bytes < needed:
        todo = "a smaller size_px or batch_size may fit"
    return Check("warn", f"{names}; {room}", todo)
