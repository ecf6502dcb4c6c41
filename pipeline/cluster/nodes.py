"""The nodes of a job: what runs on them, and which are better not used again."""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from slurm import client
from slurm.step import folded, node_names

_DRIVER = Path("/proc/driver/nvidia/version")


def versions() -> dict[str, str]:
    """What must be the same on all nodes of a training."""
    from pipeline.manifest import environment

    driver = _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else "unknown"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = "unknown" if visible is None else str(len(visible.split(",")))
    known = {name: value for name, value in environment().items() if name != "host"}
    return known | {"NVIDIA driver": driver, "visible GPUs": gpus}


def suspects(nodes: Sequence[str], since: datetime) -> list[str]:
    """Of the nodes of an allocation that died at some time after `since` those that are out, or were started anew."""
    began = since.astimezone().replace(tzinfo=None)
    found = []
    for name, facts in client.node_facts(nodes).items():
        started = [facts[key] for key in ("SlurmdStartTime", "BootTime") if facts.get(key, "")[:4].isdecimal()]
        if client.is_out(facts.get("State", "")) or any(datetime.fromisoformat(time) > began for time in started):
            found.append(name)
    return found


def exclude(folder: JobsFolder, part: str, nodes: Sequence[str], *, nodes_min: int) -> tuple[str, ...]:
    """Has a part's job exclude these nodes, beside those that it excluded before; all that are excluded.

    Where too few others would be left for the job, only the new ones are, and if that is too many too, none.
    """
    file = folder.excluded(part)
    before = node_names(file.read_text().strip()) if file.is_file() else ()
    there = client.nodes_of_partition(os.environ.get("SLURM_JOB_PARTITION"))
    for chosen in (tuple(dict.fromkeys([*before, *nodes])), tuple(nodes), ()):
        if not there or len(there - set(chosen)) >= nodes_min:
            break
    file.write_text(folded(chosen) + "\n" if chosen else "")
    return chosen
