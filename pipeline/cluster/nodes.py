"""The nodes of a job: what runs on them, and which are better not used again."""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pipeline.cluster.folder import JobsFolder
from slurm import client
from slurm.profile import Resources
from slurm.step import folded, node_names

_DRIVER = Path("/proc/driver/nvidia/version")


def versions() -> dict[str, str]:
    """What must be the same on all nodes of a training."""
    from pipeline.runs.manifest import environment

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


def exclude(
    folder: JobsFolder, part: str, nodes: Sequence[str], *, nodes_min: int, always: Sequence[str] = ()
) -> tuple[str, ...]:
    """Has a part's job exclude these nodes, beside those that it excluded before; all that are excluded.

    Where too few others would be left for the job, only the new ones and the profile's (`always`) are, and if that is
    too many too, the profile's.
    """
    file = folder.excluded(part)
    before = node_names(file.read_text().strip()) if file.is_file() else ()
    there = client.nodes_of_partition(os.environ.get("SLURM_JOB_PARTITION"))
    for more in ((*before, *nodes), nodes, ()):
        chosen = tuple(dict.fromkeys([*always, *more]))
        if not there or len(there - set(chosen)) >= nodes_min:
            break
    file.write_text(folded(chosen) + "\n" if chosen else "")
    return chosen


def readmit(folder: JobsFolder, part: str, job_id: int, resources: Resources) -> tuple[str, ...]:
    """Lets a job that waits use the nodes again that it came to exclude, if too few others are up; those nodes.

    Nothing of such a job runs that could do so itself: it would wait until one of the others comes back.
    """
    file = folder.excluded(part)
    excluded = node_names(file.read_text().strip()) if file.is_file() else ()
    by_profile = node_names(resources.exclude) if resources.exclude else ()
    again = tuple(name for name in excluded if name not in by_profile)
    there = client.nodes_of_partition(resources.partition)
    if not again or not there or len(there - set(excluded)) >= (resources.nodes_min or resources.nodes or 1):
        return ()
    client.exclude_nodes(job_id, resources.exclude or "")
    file.write_text(f"{resources.exclude}\n" if resources.exclude else "")
    return again
