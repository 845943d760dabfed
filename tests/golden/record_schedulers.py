"""Record the default config of every scheduler of diffusers, and its noise levels, for test_config.py.

Run once, in an environment with torch and diffusers, and what some schedulers need beside them:

    pip install -r tests/golden/requirements.txt torchsde scipy
    cd tests
    python -m golden.record_schedulers

It rewrites schedulers.json beside it, a line for each scheduler: what its `scheduler_config.json` has, and
alphas_cumprod at some timesteps, or null where a scheduler has none. diffusers is only called, never
copied.
"""

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch

PATH = Path(__file__).parent / "schedulers.json"
TIMESTEPS = (0, 1, 10, 100, 500, 900, 999)
# Arguments that have no default. Schedulers that are absent here and need some are left out.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 0},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
}


def default_schedulers() -> dict[str, Any]:
    schedulers = {}
    for name in sorted(dir(diffusers)):
        kind = getattr(diffusers, name) if name.endswith("Scheduler") else None
        if not inspect.isclass(kind):
            continue
        arguments = ARGUMENTS.get(name, {})
        if required_arguments(kind) <= set(arguments):
            schedulers[name] = kind(**arguments)
    return {name: scheduler for name, scheduler in schedulers.items() if hasattr(scheduler, "config")}


def required_arguments(kind: type) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}


def recorded(scheduler: Any) -> dict[str, Any]:
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    return {
        "config": json.loads(scheduler.to_json_string()),
        "alphas_cumprod": None
        if alphas_cumprod is None
        else {str(t): float(f"{alphas_cumprod[t].item():.8g}") for t in TIMESTEPS},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    lines = {
        "recorded_with": json.dumps(f"diffusers {diffusers.__version__}, torch {torch.__version__}"),
        **{name: json.dumps(recorded(s), sort_keys=True) for name, s in default_schedulers().items()},
    }
    PATH.write_text("{\n" + ",\n".join(f'"{name}": {line}' for name, line in lines.items()) + "\n}\n")
