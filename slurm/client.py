"""SLURM's commands: what they are asked, and what their answers mean."""

import logging
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from slurm.errors import SlurmError, SlurmUnreachable
from slurm.profile import Resources, seconds_of

log = logging.getLogger(__name__)

_SECONDS = 60
_TRIES = 4
_UNANSWERED = ("Unable to contact", "timed out", "Connection refused", "Zero Bytes were transmitted")
Accepted = TypeVar("Accepted")


def require_sbatch(way_out: str) -> None:
    """Raises: SlurmError, ending in the way out, if this machine cannot submit jobs."""
    if shutil.which("sbatch") is None:
        raise SlurmError(f"no sbatch on the path: jobs are submitted on a login node of the cluster; {way_out}")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """One call of a SLURM command.

    Raises: SlurmUnreachable if it is not there or does not answer.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace")
    except FileNotFoundError as error:
        raise SlurmUnreachable(f"no {words[0]} on this machine's path") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(f"{words[0]} has not answered for {_SECONDS} s") from error


def failure_text(result: subprocess.CompletedProcess[str]) -> str:
    """What a command printed of its failure, on one line."""
    lines = (result.stderr or result.stdout).splitlines()
    return "; ".join(line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line.strip())


def submit(script: Path, after: str = "", *, accepted: Callable[[], Accepted | None]) -> "int | Accepted":
    """Submits a script; the job's id.

    Where SLURM's answer is lost, `accepted` looks whether the job was accepted nevertheless, and its result is
    returned; only if that is None the script is submitted again.

    Raises: SlurmError in sbatch's own words, SlurmUnreachable.
    """
    words = ["sbatch", "--parsable", *([f"--dependency={after}"] if after else []), str(script)]
    for attempt in range(_TRIES):
        try:
            result = command(*words)
        except SlurmUnreachable:
            if (job := accepted()) is not None:
                return job
            raise
        if result.returncode == 0:
            return int(result.stdout.strip().splitlines()[-1].split(";")[0])
        if not any(sign in result.stderr for sign in _UNANSWERED):
            raise SlurmError(f"sbatch refused {script}: {failure_text(result)}")
        if (job := accepted()) is not None:
            return job
        time.sleep(2**attempt)
    raise SlurmUnreachable(f"sbatch {script}: {failure_text(result)}")


def check(script: Path, name: str, resources: Resources) -> None:
    """Asks whether a job could ever run, without submitting it.

    While nodes are out SLURM's answer is about those that are not: what may be for that reason alone is a warning.

    Raises: SlurmError in sbatch's own words, or for a time limit that no partition allows: many clusters
    (EnforcePartLimits=NO) accept such a job, which then waits forever.
    """
    result = command("sbatch", "--test-only", str(script))
    if result.returncode != 0:
        reason = failure_text(result).removeprefix("allocation failure: ")
        if "node configuration is not available" not in reason or not nodes_out(resources.partition):
            raise SlurmError(f"SLURM would refuse the job {name}: {reason}")
        log.warning("the job %s cannot run while nodes of its partition are out (SLURM: %s)", name, reason)
    limits = time_limits(resources.partition)
    if resources.time and limits and all(seconds_of(resources.time) > limit for limit in limits.values()):
        longest = max(limits, key=limits.__getitem__)
        raise SlurmError(
            f"the job {name} asks for time: {resources.time} (in the cluster profile); partition {longest} allows "
            f"{timedelta(seconds=limits[longest])} at most. Work that can be requeued needs no more: it goes on in a "
            "new allocation when its time is up"
        )


def time_limits(partition: str | None) -> dict[str, float]:
    """Longest time in seconds of the partitions (several with commas; None: of the default one), by name.

    Empty where SLURM cannot be asked.
    """
    try:
        result = command("sinfo", "--noheader", "-o", "%P|%l", *(["-p", partition] if partition else []))
    except SlurmUnreachable:
        return {}
    limits = {}
    for line in result.stdout.splitlines():
        name, _, limit = line.strip().partition("|")
        if (partition or name.endswith("*")) and limit:
            limits[name.rstrip("*")] = seconds_of(limit) if limit[0].isdecimal() else math.inf
    return limits


def cancel(ids: Sequence[str]) -> None:
    """Ends jobs; those that have ended already are no error. Raises: SlurmError."""
    if not ids:
        return
    result = command("scancel", *ids)
    if result.returncode != 0 and "already" not in result.stderr and "Invalid job id" not in result.stderr:
        raise SlurmError(f"scancel: {failure_text(result)}")


def exclude_nodes(job_id: int, nodes: str) -> None:
    """Has a job that waits exclude these nodes, and no others. Raises: SlurmError."""
    result = command("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}")
    if result.returncode != 0:
        raise SlurmError(f"scontrol update of job {job_id}: {failure_text(result)}")


def setting(name: str, default: str) -> str:
    """A setting of the cluster, such as MaxArraySize; `default` where it cannot be asked for."""
    try:
        result = command("scontrol", "show", "config")
    except SlurmUnreachable:
        return default
    line = re.search(rf"^{name}\s*=\s*(\S+)", result.stdout, re.MULTILINE | re.IGNORECASE)
    return line[1] if line else default


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job, or of one task of an array (`task`; None: of a job that is no array)."""

    job_id: int
    """Of the array, for its tasks."""
    task: int | None
    name: str
    state: str
    """SLURM's word, such as RUNNING."""
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    exit_code: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in _ACTIVE

    @property
    def is_running(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")

    @property
    def has_failed(self) -> bool:
        return not self.is_active and self.state != "COMPLETED"


_ACTIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "RESV_DEL_HOLD"),
}


def listed(names: Callable[[str], bool]) -> list[JobState]:
    """This user's jobs that wait, run or ended lately, by name; an array's tasks one by one.

    Raises: SlurmUnreachable.
    """
    result = command("squeue", "--me", "--noheader", "--array", "--states=all", "-o", "%F|%K|%T|%N|%r|%j")
    if result.returncode != 0:
        raise SlurmUnreachable(f"squeue: {failure_text(result)}")
    states = []
    for line in result.stdout.splitlines():
        if line.count("|") < 5:  # the rest of another job's name, which has a line break
            continue
        job_id, task, state, nodes, reason, name = line.split("|", 5)
        if names(name):
            states.append(JobState(int(job_id), _task(task), name, state, _reason(reason), nodes))
    return states


def remembered(job_id: int) -> list[JobState]:
    """What the controller still knows of a job, also one that has ended; empty where it knows nothing."""
    try:
        result = command("scontrol", "--oneliner", "show", "job", str(job_id))
    except SlurmUnreachable:
        return []
    if result.returncode != 0:
        return []
    return [state for line in result.stdout.splitlines() for state in _described(line)]


def accounted(job_id: int) -> list[JobState]:
    """What the accounting knows of a job; empty where there is no accounting."""
    fields = "JobID,JobName,State,ExitCode,NodeList"
    try:
        result = command("sacct", "-n", "-P", "-X", "-j", str(job_id), "-o", fields)
    except SlurmUnreachable:
        return []
    states = []
    for line in result.stdout.splitlines() if result.returncode == 0 else ():
        identity, name, state, code, nodes = line.split("|")
        number, _, task = identity.partition("_")
        if number.isdecimal() and (not task or task.isdecimal()):
            states.append(JobState(int(number), _task(task), name, state.split()[0], nodes=nodes, exit_code=code))
    return states


def states_of(ids: Sequence[int], active: Sequence[JobState]) -> dict[int, list[JobState]]:
    """All that SLURM knows of these jobs: `active` of the queue, then the controller's memory, then accounting.

    Of an array's tasks that were cancelled before they began accounting alone knows.
    """
    states: dict[int, list[JobState]] = {}
    for job_id in ids:
        kept = {state.task: state for state in remembered(job_id)}
        known = kept if None in kept else {state.task: state for state in accounted(job_id)} | kept
        known |= {
            state.task: replace(state, restarts=known[state.task].restarts) if state.task in known else state
            for state in active
            if state.job_id == job_id and state.is_active
        }
        states[job_id] = list(known.values())
    return states


def nodes_of_partition(partition: str | None) -> set[str]:
    """Nodes of a partition (None: of all) that could run a job now or later; empty where SLURM cannot be asked."""
    return {name for name, state in _node_states(partition) if not is_out(state)}


def nodes_out(partition: str | None) -> set[str]:
    """Nodes of a partition (None: of all) that take no jobs at present; empty where SLURM cannot be asked."""
    return {name for name, state in _node_states(partition) if is_out(state)}


def _node_states(partition: str | None) -> list[tuple[str, str]]:
    try:
        result = command("sinfo", "--noheader", "-N", *(["-p", partition] if partition else []), "-o", "%N|%T")
    except SlurmUnreachable:
        return []
    return [(name, state) for name, _, state in (line.partition("|") for line in result.stdout.splitlines()) if state]


def is_out(state: str) -> bool:
    """Whether a node in this state takes no jobs: sinfo writes drained or down*, scontrol IDLE+DRAIN."""
    words = {word.rstrip("*~#!%$@^-").lower() for word in state.split("+")}
    return "*" in state or not words.isdisjoint(_OUT)


_OUT = {
    *("down", "drained", "draining", "drain", "fail", "failing", "error", "unknown", "future", "maint"),
    *("no_respond", "not_responding"),
}


def node_facts(nodes: Sequence[str]) -> dict[str, dict[str, str]]:
    """State, SlurmdStartTime and more of nodes, by name; empty where SLURM cannot be asked."""
    if not nodes:
        return {}
    try:
        result = command("scontrol", "--oneliner", "show", "node", ",".join(nodes))
    except SlurmUnreachable:
        return {}
    facts_by_node = {}
    for line in result.stdout.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S+)", line))
        if "NodeName" in facts:
            facts_by_node[facts["NodeName"]] = facts
    return facts_by_node


def _described(line: str) -> list[JobState]:
    """Of `scontrol --oneliner show job`: a job, a task, or the tasks of an array that have not been looked at yet."""
    facts = {}
    for name in ("JobId", "ArrayJobId", "ArrayTaskId", "JobName", "JobState", "Reason", "ExitCode", "Restarts"):
        if match := re.search(rf"(?:^|\s){name}=(\S*)", line):
            facts[name] = match[1]
    nodes = re.search(r"\sNodeList=(\S*)", line)
    if "JobId" not in facts:
        return []
    state = JobState(
        int(facts.get("ArrayJobId", facts["JobId"])),
        None,
        facts.get("JobName", ""),
        facts.get("JobState", ""),
        _reason(facts.get("Reason", "")),
        nodes[1] if nodes and nodes[1] != "(null)" else "",
        int(facts.get("Restarts") or 0),
        facts.get("ExitCode", ""),
    )
    if "ArrayTaskId" not in facts:
        return [state]
    return [replace(state, task=task) for task in tasks_in(facts["ArrayTaskId"])]


def tasks_in(text: str) -> list[int]:
    """Task numbers of `0-3,7%2`."""
    tasks: list[int] = []
    for part in text.split("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            tasks += range(int(first), int(last.split(":")[0] or first) + 1) if last else [int(first)]
    return tasks


def _task(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _reason(text: str) -> str:
    return "" if text in ("None", "(null)") else text
