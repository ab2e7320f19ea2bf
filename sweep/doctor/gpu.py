"""Is there a GPU for the study, can torch compute on it, and has it enough free memory?"""

import json
import subprocess

from core.base_models import base_model
from reports.units import size
from sweep.doctor.check import Check
from sweep.plan.machine import Gpu, NotKnown, ask_torch, find_gpus, refusal
from sweep.plan.plan import Plan

TORCH_LIMIT_S = 30


def check_gpu(plan: Plan) -> Check:
    """The GPUs, and whether torch can compute on them, which a child process finds out if there is one."""
    model, gpus = base_model(plan.study.backbone), find_gpus()
    try:
        why = "" if model.needs_gpu else refusal(plan.study.backbone, "auto", plan.study.precision)
    except NotKnown as unknown:
        return Check(
            name="GPU",
            state="warn",
            found=f"whether {plan.study.backbone} can train here is not known: {unknown}",
        )
    if why:
        return Check(name="GPU", state="missing", found=why, todo="lora-sweep run refuses it like this")
    if not gpus.found:
        return Check(
            name="GPU",
            state="missing" if model.needs_gpu else "OK",
            found=gpus.problem
            if model.needs_gpu
            else f"{gpus.problem}: {model.name} runs on the CPU, Kolors needs one",
            todo=f"{model.title} needs an NVIDIA GPU, 24 GB are enough; "
            "tiny runs without (lora-sweep run demo)"
            if model.needs_gpu
            else "",
        )
    cards = ", ".join(f"{gpu.name} with {gpu.memory_bytes / 2**30:.0f} GB" for gpu in gpus.found)
    cards += f", driver {gpus.found[0].driver}"
    problem = torch_problem()
    if problem:
        return Check(
            name="GPU",
            state="missing" if model.needs_gpu else "warn",
            found=f"{cards}; {problem}",
            todo="a CUDA build of torch that fits this driver is needed (see docs/cloud.md); "
            "CUDA_VISIBLE_DEVICES must not hide the GPU",
        )
    return _check_gpu_memory(plan, gpus.found[0], cards)


def torch_problem() -> str:
    """Why torch cannot compute on the GPU; empty when it can."""
    try:
        done = ask_torch("gpu", timeout_s=TORCH_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"torch gave no answer in {TORCH_LIMIT_S} s"
    if done.returncode:
        return f"torch cannot compute on it: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    said = json.loads(done.stdout.splitlines()[-1])
    built = f"torch {said['version']} ({'CUDA ' + said['built_for'] if said['built_for'] else 'no CUDA'})"
    return "" if said["well"] else f"{built} sees no GPU it can use"


def _check_gpu_memory(plan: Plan, gpu: Gpu, cards: str) -> Check:
    if plan.memory is None:
        return Check(name="GPU", state="OK", found=f"{cards}; torch computes on it")
    needed = max(plan.memory.checkpointed, plan.memory.encoding)
    free = gpu.memory_bytes - gpu.used_bytes
    room = f"{size(free)} are free, about {size(needed)} are needed (estimate)"
    if free >= needed:
        return Check(name="GPU", state="OK", found=f"{cards}; torch computes on it; {room}")
    small = gpu.memory_bytes < needed
    return Check(
        name="GPU",
        state="warn",
        found=f"{cards}; {room}",
        todo="a smaller size_px or batch_size may fit"
        if small
        else "another program holds memory of this GPU (see nvidia-smi)",
    )
