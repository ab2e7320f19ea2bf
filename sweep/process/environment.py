"""The import path and the environment variables that libraries see, in this process and all its children.

Both are set when `sweep` is imported, before any library is.
"""

import os
import re
import sys
from collections.abc import MutableMapping

# not core.files.install.ROOT: no other module may be imported before this one
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARY = os.path.dirname(os.__file__)
SET = {
    # a call must fail when the server does not take it: tracking then retries
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "PYTHONSAFEPATH": "1",  # no child imports from the current folder
    "UVICORN_APP_DIR": LIBRARY,  # MLflow's server would do so in spite of PYTHONSAFEPATH
}
# MLflow 3.17 reports every use to its makers, unless this is set before it is imported (mlflow/telemetry).
SET_UNLESS_GIVEN = {"MLFLOW_DISABLE_TELEMETRY": "true"}
# Variables that would change results, the place of files or a guarantee without the study file saying so.
_REMOVED = (
    r"(PL|LT)_\w+",  # Lightning takes any Trainer argument that we leave out
    r"(ACCELERATE|FSDP)_\w+",  # PEFT and transformers by way of accelerate
    r"USE_(TORCH|TF|FLAX|JAX)",  # transformers' choice of a framework
    # set in NVIDIA's containers; the scorer is to compute in fp32
    r"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    r"TORCH_FORCE_(NO_)?WEIGHTS_ONLY_LOAD",  # may unpickle
    r"PYTORCH_(TUNABLEOP_\w+|NO_CUDA_MEMORY_CACHING|JIT)",
    r"NVIDIA_TF32_OVERRIDE",  # TF32 as above, for every library of NVIDIA's
    r"(ONEDNN|DNNL)_\w+",  # fp32 computed in bf16, other kernels
    # other kernels, other sums
    r"ATEN_CPU_CAPABILITY|MKL_(CBWR|ENABLE_INSTRUCTIONS|DISABLE_FAST_MM)",
    # runs would be stored where nothing looks for them
    r"MLFLOW_(ENABLE_WORKSPACES|WORKSPACE(_STORE_URI)?)",
    r"MLFLOW_(RUN_ID|EXPERIMENT_(ID|NAME)|REGISTRY_URI|RUN_CONTEXT|TRUNCATE_LONG_VALUES|SQLALCHEMYSTORE_ECHO)",
    r"(OPTUNA|PANDAS|UVICORN)_\w+",
    r"PYTHONWARNINGS",  # a library's warning would fail a trial
)
REMOVED = re.compile("|".join(_REMOVED))
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def settle(variables: MutableMapping[str, str]) -> tuple[str, ...]:
    """Set import path and variables -> the names of variables whose value by the user was dropped."""
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
    """An import path sorted: standard library, our own modules, installed packages, and last the current
    folder and PYTHONPATH.
    """
    if LIBRARY not in path:
        return path
    start = path.index(LIBRARY)
    standard = [
        entry for entry in path[start:] if entry == LIBRARY or os.path.basename(entry) == "lib-dynload"
    ]
    return list(dict.fromkeys((*standard, ROOT, *path[start:], *path[:start])))


NOT_PASSED_ON = settle(os.environ)
