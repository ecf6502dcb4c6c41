"""The jobs of a run that wait or run in SLURM, each with what was written down when it was accepted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.records import JobNames, Submitted
from pipeline.cluster.stage_jobs import StageJob
from pipeline.runs.manifest import now
from slurm import client
from slurm.client import JobState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queue:
    """What of a run is on its way."""

    jobs: tuple[Submitted, ...] = ()
    states: tuple[JobState, ...] = ()
    """By SLURM, of each task of an array one."""

    def of(self, part: str) -> list[Submitted]:
        """Jobs of the stage job with this name."""
        return [job for job in self.jobs if job.part == part]

    def has_begun(self, job: Submitted) -> bool:
        return any(state.is_running for state in self._states_of(job))

    def is_pending(self, job: Submitted) -> bool:
        return any(state.state == "PENDING" for state in self._states_of(job))

    def tasks_of(self, jobs: Sequence[Submitted]) -> set[int]:
        """Numbers of the tasks of these arrays that wait or run."""
        return {state.task + job.offset for job in jobs for state in self._states_of(job) if state.task is not None}

    def _states_of(self, job: Submitted) -> list[JobState]:
        return [state for state in self.states if state.job_id == job.job_id]


def ask_queue(folder: JobsFolder, names: JobNames, stage_jobs: Sequence[StageJob]) -> Queue:
    """What SLURM has of the run. A job that a submit which was cut off did not write down is written down now.

    stage_jobs: those of the run that are not complete. Raises: SlurmUnreachable.
    """
    states = [state for state in client.listed(names.are_ours) if state.is_active]
    recorded = {job.job_id for job in folder.submitted()}
    for job_id in sorted({state.job_id for state in states} - recorded):
        record = _lost_record([state for state in states if state.job_id == job_id], names, stage_jobs, folder)
        if record is not None:
            log.warning(
                "job %d (%s) was accepted by SLURM before a submit was cut off; it is kept", job_id, record.part
            )
            folder.add(record)
    active = {state.job_id for state in states}
    return Queue(tuple(job for job in folder.submitted() if job.job_id in active), tuple(states))


def _lost_record(
    states: Sequence[JobState], names: JobNames, stage_jobs: Sequence[StageJob], folder: JobsFolder
) -> Submitted | None:
    """What would have been written down of a job; None for one that nothing is left to do for."""
    part, offset = names.read(states[0].name)
    stage_job = next((job for job in stage_jobs if job.name == part), None)
    if stage_job is None:
        return None
    tasks = [state.task + offset for state in states if state.task is not None]
    return record_of(stage_job, states[0].job_id, folder, names, tasks=tasks, offset=offset)


def record_of(
    stage_job: StageJob,
    job_id: int,
    folder: JobsFolder,
    names: JobNames,
    *,
    after: str = "",
    tasks: Sequence[int] = (),
    offset: int = 0,
) -> Submitted:
    """What is written down of a job that SLURM has accepted."""
    return Submitted(
        time=now(),
        part=stage_job.name,
        stage=stage_job.stage.name,
        does=stage_job.does,
        job_id=job_id,
        name=names.write(stage_job.name, offset),
        after=after,
        tasks=tuple(tasks),
        offset=offset,
        of=stage_job.tasks,
        log=str(folder.logs.absolute() / stage_job.name),
    )
