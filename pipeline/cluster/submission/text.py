"""What a submit has done, or would do, for people."""

import shlex
from collections.abc import Sequence

from pipeline.cluster.submission.scripts import Script
from pipeline.cluster.submission.submit import Submission
from slurm.job import ranges


def as_text(submission: Submission) -> str:
    """A line for every stage that is complete and for every job."""
    lines = [f"{name:<18} complete, not submitted again" for name in submission.complete]
    for part, jobs in submission.kept.items():
        lines.append(f"{part:<18} job {', '.join(str(job.job_id) for job in jobs)} is on its way already")
    for job in submission.submitted:
        tasks = f", {len(job.tasks)} tasks ({ranges(job.tasks)})" if job.tasks else ""
        after = f", after {job.after}" if job.after else ""
        lines.append(f"{job.part:<18} job {job.job_id}{tasks}{after}")
    return "\n".join(lines)


def as_scripts(scripts: Sequence[Script]) -> str:
    """The exact scripts, each after the command that would submit it."""
    names = {script.stage_job.name for script in scripts}
    return "\n".join(f"##### {_command(script, names)}\n{script.text}" for script in scripts)


def _command(script: Script, names: set[str]) -> str:
    needs = ",".join(f"afterok:<{need}>" for need in script.stage_job.needs if need in names)
    dependency = f"--dependency={needs} " if needs else ""
    return f"sbatch --parsable {dependency}{shlex.quote(str(script.path))}"
