"""What has become of a job: what it said of itself, and SLURM, none of them trusted alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.records import Attempt, Attempts, Submitted
from pipeline.cluster.status.knowledge import Knowledge
from pipeline.errors import REQUEUE
from slurm.client import JobState

State = Literal["complete", "running", "waiting", "failed", "cancelled", "lost", "not submitted"]
WORST_FIRST: tuple[State, ...] = ("failed", "lost", "cancelled", "running", "waiting", "complete", "not submitted")
ENDED_BADLY: tuple[State, ...] = ("failed", "lost", "cancelled")
_NEVER = ("Dependency", "DependencyNeverSatisfied")
_WORDS = {
    "TIMEOUT": "ended by its time limit",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted, and not requeued",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "its deadline has passed",
    "FAILED": "failed",
}


@dataclass(frozen=True)
class Verdict:
    """State of a job or a task, and why."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class JobStatus:
    """A job, or an array as a whole: as the task of it that is worst off."""

    job: Submitted
    state: State
    detail: str = ""
    restarts: int = 0
    nodes: str = ""
    log: Path | None = None
    of_tasks: Mapping[int, State] = field(default_factory=dict)
    """By number of the task."""


def job_status(job: Submitted, folder: JobsFolder, knowledge: Knowledge) -> JobStatus:
    """A job by what it wrote down itself and by what SLURM knows."""
    states = knowledge.of(job)
    attempts = folder.attempts_of(job.part, job.job_id, job.indices)
    verdicts: dict[int | None, Verdict] = {}
    for index in job.indices:
        last = _last(attempts.get(index))
        if states and index not in states and last is None:  # SLURM forgets at once what it has not begun
            verdicts[index] = Verdict("cancelled", "cancelled while it waited")
        else:
            verdicts[index] = judge(states.get(index), last, reachable=knowledge.reachable)
    worst = min(verdicts, key=lambda index: WORST_FIRST.index(verdicts[index].state))
    state, last = states.get(worst), _last(attempts.get(worst))
    return JobStatus(
        job,
        verdicts[worst].state,
        verdicts[worst].reason,
        restarts=max(state.restarts if state else 0, last.restarts if last else 0),
        nodes=_nodes(state, last),
        log=job.log_file(worst),
        of_tasks={index + job.offset: verdict.state for index, verdict in verdicts.items() if index is not None},
    )


def _last(attempts: Attempts | None) -> Attempt | None:
    return attempts.attempts[-1] if attempts and attempts.attempts else None


def _nodes(state: JobState | None, last: Attempt | None) -> str:
    if state and state.nodes:
        return state.nodes
    return ",".join(last.nodes) if last else ""


def judge(state: JobState | None, last: Attempt | None, *, reachable: bool) -> Verdict:
    """A job or task, from what SLURM says and from the last allocation that it wrote down itself."""
    message = last.message if last else ""
    if state is None:
        return judge_alone(last, reachable=reachable)
    return judge_active(state, message) if state.is_active else judge_ended(state, message)


def judge_active(state: JobState, message: str) -> Verdict:
    """One that waits or runs. message: how its last allocation ended."""
    if state.is_running:
        return Verdict("running")
    if state.reason == "DependencyNeverSatisfied":
        return Verdict("cancelled", "what it waits for has failed")
    before = f"; before: {message}" if message else ""
    return Verdict("waiting", f"{state.reason or 'to be scheduled'}{before}")


def judge_ended(state: JobState, message: str) -> Verdict:
    """One that SLURM has ended, or seen end. message: what it said of that itself."""
    if state.state == "COMPLETED":
        return Verdict("complete")
    words = _WORDS.get(state.state, f"ended by SLURM as {state.state}")
    if state.state == "CANCELLED" and state.reason in _NEVER:
        words = "what it waited for has failed"
    where = f" on {state.nodes}" if state.nodes and state.state in ("NODE_FAIL", "OUT_OF_MEMORY") else ""
    reason = f"{words}{where}{': ' if message else ''}{message}"
    return Verdict("cancelled" if state.state in ("CANCELLED", "REVOKED") else "failed", reason)


def judge_alone(last: Attempt | None, *, reachable: bool) -> Verdict:
    """One that SLURM knows nothing of, or cannot be asked about."""
    if last is None:
        if reachable:
            return Verdict("lost", "SLURM no longer knows the job, and it never began")
        return Verdict("waiting", "not begun")
    if last.ended is None:
        if reachable:
            nodes = ", ".join(last.nodes)
            return Verdict("lost", f"SLURM no longer knows the job, which began on {nodes} and did not end well")
        return Verdict("running")
    if last.code == 0:
        return Verdict("complete")
    if last.code == REQUEUE and not reachable:
        return Verdict("waiting", last.message)
    return Verdict("failed", last.message)
