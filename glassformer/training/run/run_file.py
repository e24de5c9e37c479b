"""run.json: what a run was told, what it chose, on what it ran; so that it can go on later, or say what differs."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from glassformer.atomic import write_text
from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats.reader import read_json
from glassformer.training.config import Plan, TrainConfig, build, config_dict, flatten, settings_from

RUN_FILE, FORMAT = "run.json", 1
PACKAGES = ("glassformer", "torch", "safetensors", "tokenizers", "numpy")
RESUME_MAY_CHANGE = frozenset({"out", "resume", "tensorboard", "wandb", "keep_last", "device", "dtype", "threads"})
RESUME_MUST_MATCH = (
    "task", "model", "tokenizer", "init", "held_out", "held_out_data", "from_model", "seed", "shuffle", "strict",
)  # fmt: skip


@dataclass(frozen=True)
class RunFile:
    """What run.json says. `fingerprint` is of the prepared data, None until it is prepared; `plan` None until made."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    fingerprint: str | None = None
    plan: Plan | None = None

    def write(self, folder: Path) -> None:
        body = {
            "format": FORMAT,
            "settings": self.settings,
            "environment": self.environment,
            "data_fingerprint": self.fingerprint,
            "plan": None if self.plan is None else config_dict(self.plan),
        }
        write_text(folder / RUN_FILE, json.dumps(body, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunFile:
        """Raises CheckpointError when the file is missing, cut short, or of another format version."""
        raw = read_json(folder / RUN_FILE)
        if raw.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / RUN_FILE} has format version {raw.get('format')!r}, this Glassformer reads {FORMAT}"
            )
        try:
            plan = None if raw["plan"] is None else build(Plan, raw["plan"], "plan")
            return cls(raw["settings"], raw["environment"], raw["data_fingerprint"], plan)
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{folder / RUN_FILE} is damaged: {error}") from None


def has_run(folder: Path) -> bool:
    return (folder / RUN_FILE).exists()


def resume_config(folder: str | Path, **changes: Any) -> TrainConfig:
    """The settings of the run in `folder`, to resume it; `changes` are fields of TrainConfig that are asked anew."""
    settings = settings_from(RunFile.read(Path(folder)).settings)
    if changes.keys() & {"seconds", "steps", "tokens"}:
        settings = replace(settings, seconds=None, steps=None, tokens=None)
    return replace(settings, out=str(folder), resume=True, **changes)


def environment(device: torch.device, dtype: str, processes: int) -> dict[str, Any]:
    """What a bit-for-bit continuation depends on beside the settings."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        **found,
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As Linux names it; elsewhere what Python knows."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, by name: "threads was 2, now 4"."""
    before, now = flatten(before), flatten(now)
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names]


def check_resume(recorded: RunFile, config: TrainConfig) -> list[str]:
    """What of the settings differs and may (as sentences). Raises ConfigError for what makes it another run."""
    now, then = config_dict(config), config_dict(settings_from(recorded.settings))
    kept, asked = ({k: s[k] for k in RESUME_MUST_MATCH} | {"optim.name": s["optim"]["name"]} for s in (then, now))
    refused = differences(kept, asked)  # another optimizer has no use for what this one has kept
    if refused:
        raise ConfigError(f"{config.out} cannot be resumed with other settings: {'; '.join(refused)}")
    free = RESUME_MAY_CHANGE | set(RESUME_MUST_MATCH)
    before = {k: v for k, v in then.items() if k not in free}
    return differences(before, {k: v for k, v in now.items() if k not in free})
