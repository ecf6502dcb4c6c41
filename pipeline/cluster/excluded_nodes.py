"""The nodes that a stage's job does not use, in a file that its script reads."""

import os
from collections.abc import Sequence

from pipeline.cluster.folder import JobsFolder
from slurm import client
from slurm.profile import Resources
from slurm.step import folded, node_names


def exclude(
    folder: JobsFolder, part: str, nodes: Sequence[str], *, nodes_min: int, always: Sequence[str] = ()
) -> tuple[str, ...]:
    """Has a stage's job exclude these nodes, beside those that it excluded before; all that are excluded.

    Where too few others would be left for the job, only the new ones and the profile's (`always`) are, and if that is
    too many too, the profile's.
    """
    before = _excluded(folder, part)
    usable = client.nodes_of_partition(os.environ.get("SLURM_JOB_PARTITION"))
    chosen: tuple[str, ...] = ()
    for more in ((*before, *nodes), nodes, ()):
        chosen = tuple(dict.fromkeys([*always, *more]))
        if not usable or len(usable - set(chosen)) >= nodes_min:
            break
    folder.excluded(part).write_text(folded(chosen) + "\n" if chosen else "")
    return chosen


def readmit(folder: JobsFolder, part: str, job_id: int, resources: Resources) -> tuple[str, ...]:
    """Lets a job that waits use the nodes again that it came to exclude, if too few others are up; those nodes.

    Nothing of such a job runs that could do so itself: it would wait until one of the others comes back.
    """
    excluded = _excluded(folder, part)
    by_profile = node_names(resources.exclude) if resources.exclude else ()
    again = tuple(name for name in excluded if name not in by_profile)
    usable = client.nodes_of_partition(resources.partition)
    if not again or not usable or len(usable - set(excluded)) >= (resources.nodes_min or resources.nodes or 1):
        return ()
    client.exclude_nodes(job_id, resources.exclude or "")
    folder.excluded(part).write_text(f"{resources.exclude}\n" if resources.exclude else "")
    return again


def _excluded(folder: JobsFolder, part: str) -> tuple[str, ...]:
    """The nodes that a stage's job does not use."""
    file = folder.excluded(part)
    return node_names(file.read_text().strip()) if file.is_file() else ()
