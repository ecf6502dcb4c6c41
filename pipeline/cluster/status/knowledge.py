"""What SLURM knows of a run's jobs, as far as it can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.records import JobNames, Submitted
from slurm import client
from slurm.client import JobState


@dataclass(frozen=True)
class Knowledge:
    """States by the job's number; of an array one for each task."""

    states: dict[int, list[JobState]] = field(default_factory=dict)
    reachable: bool = True
    note: str = ""
    """Why SLURM could not be asked."""

    def of(self, job: Submitted) -> dict[int | None, JobState]:
        """States of a job's tasks, by their index in SLURM's array; by None of a job that is no array."""
        return {state.task: state for state in self.states.get(job.job_id, [])}


def ask_slurm(folder: JobsFolder, run: str, journal: Sequence[Submitted]) -> Knowledge:
    """What SLURM knows of the jobs that count; nothing where it cannot be asked."""
    if not journal:
        return Knowledge()
    names = JobNames(run, folder.label)
    try:
        active = client.listed(names.are_ours)
    except client.SlurmUnreachable as error:
        return Knowledge(
            reachable=False, note=f"SLURM could not be asked ({error}); what follows is from the run's folder"
        )
    all_states = client.states_of([job.job_id for job in jobs_that_count(journal)], active)
    # Numbers begin anew when a controller lost its state: another's job is not ours.
    ours = {job_id: [state for state in states if names.are_ours(state.name)] for job_id, states in all_states.items()}
    return Knowledge(ours)


def jobs_that_count(journal: Sequence[Submitted]) -> list[Submitted]:
    """Of every stage job the newest job, and of arrays all, since each has tasks of its own."""
    newest = {job.part: job for job in journal}
    return [job for job in journal if job.is_array or job is newest[job.part]]
