"""run.json: the configuration, plan and environment of a run, to resume it or to report what differs."""

from __future__ import annotations

import json
import platform
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired

import torch
from typing_extensions import TypedDict

from glassformer.atomic import write_text
from glassformer.errors import CheckpointError, ConfigError
from glassformer.json_file import check_schema, read_json
from glassformer.training.config import Plan, TrainConfig, config_dict, flatten, from_dict

RUN_FILE, FORMAT = "run.json", 2
PACKAGES = ("glassformer", "torch", "safetensors", "tokenizers", "numpy")
# Options that a resumed run may change without a warning, and options that must be the same. All others may change
# with a warning that the run is not bit-identical.
RESUME_MAY_CHANGE = frozenset({"out", "resume", "tensorboard", "wandb", "keep_last", "device", "dtype", "threads"})
RESUME_MUST_MATCH = (
    "task.kind", "task.model.", "task.init.", "task.shuffle", "task.strict", "read.", "tokenizer.", "held_out",
    "held_out_data", "data", "from_model", "seed", "optim.name",
)  # fmt: skip


class RunValues(TypedDict):
    """The values of run.json; `from_dict` checks those of config and plan."""

    id: NotRequired[str]
    config: dict[str, Any]
    environment: dict[str, Any]
    data_fingerprint: str | None
    plan: dict[str, Any] | None


@dataclass(frozen=True)
class RunFile:
    """The contents of run.json. `fingerprint` and `plan` are None until the data is prepared and the plan is made.

    id: the name of the run in a tracker, the same whenever it is resumed.
    """

    config: TrainConfig
    environment: dict[str, Any]
    fingerprint: str | None = None
    plan: Plan | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def write(self, folder: Path) -> None:
        """Write run.json atomically."""
        body = {
            "format": FORMAT,
            "id": self.id,
            "config": config_dict(self.config),
            "environment": self.environment,
            "data_fingerprint": self.fingerprint,
            "plan": None if self.plan is None else config_dict(self.plan),
        }
        write_text(folder / RUN_FILE, json.dumps(body, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunFile:
        """Read run.json.

        Raises CheckpointError when it is missing, truncated, of another format version, or has other values.
        """
        path = folder / RUN_FILE
        if not has_run(folder):
            raise CheckpointError(f"{folder} is not a run folder, it has no {RUN_FILE}: start a run without resume")
        raw = read_json(path, dict[str, Any])
        if raw.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format version {raw.get('format')!r}, this Glassformer reads {FORMAT}: start a new run"
            )
        check_schema(raw, path, RunValues)
        try:
            config = from_dict(TrainConfig, raw["config"])
            plan = None if raw["plan"] is None else from_dict(Plan, raw["plan"], "plan")
        except ConfigError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
        values = {name: raw[name] for name in ("id",) if name in raw}
        return cls(config, raw["environment"], raw["data_fingerprint"], plan, **values)


def has_run(folder: Path) -> bool:
    """Return whether `folder` holds a run."""
    return (folder / RUN_FILE).exists()


def resume_config(folder: str | Path, **changes: Any) -> TrainConfig:
    """Return the configuration that resumes the run in `folder`; `changes` are fields of TrainConfig to replace."""
    config = RunFile.read(Path(folder)).config
    if changes.keys() & {"seconds", "steps", "tokens"}:
        config = replace(config, seconds=None, steps=None, tokens=None)
    return replace(config, out=str(folder), resume=True, **changes)


def environment(device: torch.device, dtype: str, processes: int) -> dict[str, Any]:
    """Return the versions and hardware that bit-identical resumption depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        **versions,
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model name as Linux reports it, elsewhere as Python does."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each value that differs: "threads was 2, now 4"."""
    before, now = flatten(before), flatten(now)
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names]


def check_resume(recorded: RunFile, config: TrainConfig) -> list[str]:
    """Return the options that differ from the recorded ones, as sentences.

    Raises ConfigError where an option differs that makes it another run.
    """
    before, now = flatten(config_dict(recorded.config)), flatten(config_dict(config))
    fixed = [name for name in dict.fromkeys([*before, *now]) if _must_match(name)]
    if changed := differences({n: before.get(n) for n in fixed}, {n: now.get(n) for n in fixed}):
        raise ConfigError(
            f"{config.out} cannot be resumed with other options: {'; '.join(changed)}: leave them out, or start a new "
            "run in another folder"
        )
    rest = [name for name in before.keys() | now.keys() if name not in RESUME_MAY_CHANGE]
    return sorted(differences({n: before.get(n) for n in rest}, {n: now.get(n) for n in rest}))


def _must_match(name: str) -> bool:
    return any(name == fixed or (fixed.endswith(".") and name.startswith(fixed)) for fixed in RESUME_MUST_MATCH)
