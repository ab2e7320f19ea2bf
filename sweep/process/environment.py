"""What our libraries find around them: one import path and one set of variables, for this process and all its
children.

Settled when `sweep` is imported, before any library is. Children inherit both.
"""

import os
import re
import sys
from collections.abc import MutableMapping

# not core.files.install's: nothing is imported before this module
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARY = os.path.dirname(os.__file__)
SET = {
    # a call must fail when the server takes nothing: it is then repeated
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "PYTHONSAFEPATH": "1",  # no child imports from the current folder
    "UVICORN_APP_DIR": LIBRARY,  # MLflow's server would all the same
}
# MLflow 3.17 tells its makers of every use, unless this is set before it is imported (mlflow/telemetry).
SET_UNLESS_GIVEN = {"MLFLOW_DISABLE_TELEMETRY": "true"}
# What would change a result, a place or a guarantee behind the study's back.
REMOVED = re.compile(
    "|".join(
        (
            r"(PL|LT)_\w+",  # Lightning takes any Trainer argument that we leave out
            r"(ACCELERATE|FSDP)_\w+",  # PEFT and transformers by way of accelerate
            r"USE_(TORCH|TF|FLAX|JAX)",  # transformers' choice of a framework
            # set in NVIDIA's containers; the scorer is to compute in fp32
            r"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
            r"TORCH_FORCE_(NO_)?WEIGHTS_ONLY_LOAD",  # may unpickle
            r"PYTORCH_(TUNABLEOP_\w+|NO_CUDA_MEMORY_CACHING|JIT)",
            r"NVIDIA_TF32_OVERRIDE",  # as the one before, for every library of NVIDIA's
            r"(ONEDNN|DNNL)_\w+",  # fp32 computed in bf16, other kernels
            # other kernels, other sums
            r"ATEN_CPU_CAPABILITY|MKL_(CBWR|ENABLE_INSTRUCTIONS|DISABLE_FAST_MM)",
            # runs would lie where nothing looks for them
            r"MLFLOW_(ENABLE_WORKSPACES|WORKSPACE(_STORE_URI)?)",
            r"MLFLOW_(RUN_ID|EXPERIMENT_(ID|NAME)|REGISTRY_URI|RUN_CONTEXT|TRUNCATE_LONG_VALUES|SQLALCHEMYSTORE_ECHO)",
            r"(OPTUNA|PANDAS|UVICORN)_\w+",
            r"PYTHONWARNINGS",  # a library's warning would fail a trial
        )
    )
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def settle(variables: MutableMapping[str, str]) -> tuple[str, ...]:
    """Put import path and variables in order -> the names of variables that the user had set otherwise."""
    sys.path[:] = ordered(sys.path)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    not_ours = [name for name in variables if REMOVED.fullmatch(name) and name not in SET]
    for name in not_ours:
        del variables[name]
    not_ours += [name for name, value in SET.items() if variables.get(name, value).lower() != value.lower()]
    variables.update(SET)
    if not os.path.isabs(variables.get("HOME", os.path.expanduser("~"))):
        # a container's user without a name: MLflow 3.17 and platformdirs do not import without a home
        variables["HOME"] = "/"
    for name, value in SET_UNLESS_GIVEN.items():
        variables.setdefault(name, value)
    # in this order, as requests and urllib read them
    spared = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
    if spared != "*":
        hosts = filter(None, spared.replace(" ", "").split(","))
        variables["no_proxy"] = ",".join(dict.fromkeys((*hosts, *LOOPBACK)))
    return tuple(sorted(not_ours))


def ordered(path: list[str]) -> list[str]:
    """The standard library, our own modules, what is installed, and last what the current folder or
    PYTHONPATH holds.
    """
    if LIBRARY not in path:
        return path
    start = path.index(LIBRARY)
    standard = [
        entry for entry in path[start:] if entry == LIBRARY or os.path.basename(entry) == "lib-dynload"
    ]
    return list(dict.fromkeys((*standard, ROOT, *path[start:], *path[:start])))


NOT_PASSED_ON = settle(os.environ)
