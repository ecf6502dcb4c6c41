"""Nodes on which a job died, and with which it does not go on."""

from collections.abc import Sequence
from datetime import datetime

from pipeline.cluster.excluded_nodes import exclude
from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.errors import Stopped
from slurm import client
from slurm.step import Step, node_names


class Elsewhere(Stopped):
    """The job can go on at once, but not on these nodes."""


def avoid_bad_nodes(folder: JobsFolder, step: Step, options: JobOptions) -> None:
    """Raises: Elsewhere if this allocation has a node on which the last one died, and there are enough others."""
    *earlier, _ = folder.attempts(options.part, step.job_id, step.task).attempts
    if not earlier or earlier[-1].ended is not None:
        return
    bad = suspects(earlier[-1].nodes, earlier[-1].started)
    if not bad:
        return
    excluded = leave_out(folder, options, bad)
    if used := sorted(set(step.nodes) & set(excluded)):
        raise Elsewhere(f"{', '.join(used)} failed under the last allocation; the job goes on without")


def suspects(nodes: Sequence[str], since: datetime) -> list[str]:
    """Of the nodes of an allocation that died at some time after `since` those that are out, or were started anew."""
    began = since.astimezone().replace(tzinfo=None)
    bad = []
    for name, facts in client.node_facts(nodes).items():
        starts = [facts[key] for key in ("SlurmdStartTime", "BootTime") if facts.get(key, "")[:4].isdecimal()]
        if client.is_out(facts.get("State", "")) or any(datetime.fromisoformat(time) > began for time in starts):
            bad.append(name)
    return bad


def leave_out(folder: JobsFolder, options: JobOptions, nodes: Sequence[str]) -> tuple[str, ...]:
    """Has the job not use these nodes again, if there are enough others; all that it does not use."""
    always = node_names(options.exclude) if options.exclude else ()
    return exclude(folder, options.part, nodes, nodes_min=options.nodes_min, always=always)
