"""What a job writes down of each allocation that it works in, and what follows from those before."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.cluster.folder import JobsFolder
from pipeline.cluster.job_options import JobOptions
from pipeline.cluster.records import Attempt, Attempts
from pipeline.errors import OutOfTime, StageFailed, exit_code
from pipeline.runs.manifest import now
from pipeline.stages.order import stage_named
from slurm.step import Step


@contextmanager
def recorded(folder: JobsFolder, step: Step, options: JobOptions) -> Iterator[None]:
    """Leaves a record of this allocation, and the verdict for the script that runs this.

    A time limit in which nothing was finished is made a failure: it would be so again and again.
    """
    before = folder.attempts(options.part, step.job_id, step.task)
    attempt = Attempt(restarts=step.restarts, nodes=step.nodes, started=now(), progress=_progress(folder, options))
    folder.write_attempts(_with(before, attempt))
    code, message = 1, "ended by an error that it did not foresee; see its log"
    try:
        with _fruitless_time_limit_is_failure(folder, options, attempt.progress):
            yield
        code, message = 0, ""
    except SystemExit as error:
        code, message = int(error.code or 0), ""
        raise
    except BaseException as error:
        code, message = _code_of(error), " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        ended = attempt.model_copy(update={"ended": now(), "code": code, "message": message})
        folder.write_attempts(_with(before, ended))
        (folder.verdicts / f"{options.part}.{step.own_id}").write_text(f"{code}\n")


@contextmanager
def _fruitless_time_limit_is_failure(folder: JobsFolder, options: JobOptions, at_start: int) -> Iterator[None]:
    """Raises: StageFailed if time was over before anything was finished."""
    try:
        yield
    except OutOfTime as error:
        if _progress(folder, options) != at_start:
            raise
        raise StageFailed(
            f"{error}; nothing was finished in this allocation, so the job is not requeued: give it more time "
            "(time, restarts.warning_seconds in the cluster profile), or let checkpoints come sooner"
        ) from error


def refuse_endless(attempts: Attempts, options: JobOptions) -> None:
    """Raises: StageFailed if this job was restarted again and again without coming further.

    The last of `attempts` is the present one.
    """
    *earlier, present = attempts.attempts
    barren = 0
    for attempt in reversed(earlier):
        if attempt.progress != present.progress:
            break
        barren += 1
    if barren >= options.barren:
        raise StageFailed(
            f"{barren} allocations in a row brought nothing (progress {present.progress}): the job ends; the logs say "
            "why; drope submit begins anew"
        )


def _progress(folder: JobsFolder, options: JobOptions) -> int:
    return stage_named(options.stage).progress(folder.run / options.stage)


def _code_of(error: BaseException) -> int:
    code = exit_code(error) if isinstance(error, Exception) else None
    return 1 if code is None else code


def _with(before: Attempts, attempt: Attempt) -> Attempts:
    return before.model_copy(update={"attempts": (*before.attempts, attempt)})
