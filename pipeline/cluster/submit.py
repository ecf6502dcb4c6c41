"""Submitting a run as a chain of jobs: what is complete, or on its way, is left alone."""

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cluster.chain import job_of, recipe_copy, resources_of, write_recipe_copy
from pipeline.cluster.folder import JobNames, JobsFolder, Submitted
from pipeline.cluster.lock import only_one
from pipeline.cluster.nodes import readmit
from pipeline.cluster.parts import Part, parts_of, stages_between
from pipeline.cluster.profiles import StageProfile
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import Recipe
from pipeline.runs.folder import LOCK_FILE, is_complete, refuse_foreign_folder
from pipeline.runs.manifest import now
from pipeline.runs.stage import ArrayStage, Stage
from pipeline.stages.order import stages_of
from slurm import client
from slurm.client import JobState
from slurm.job import Job, ranges
from slurm.script import script_text

log = logging.getLogger(__name__)

_DEFAULT_ARRAY_SIZE = 1001
"""SLURM's own default of MaxArraySize; indices lie below it."""
_UNKNOWN_LABEL = "xxxxxxxx"
"""In a dry run before the first submission, which draws it."""


@dataclass(frozen=True)
class Planned:
    """A script that would be submitted, and after which parts."""

    part: Part
    script: Path
    text: str
    job: Job
    offset: int


@dataclass
class Chain:
    """What submitting a run comes to."""

    skipped: list[str] = field(default_factory=list)
    """Stages that are complete."""
    kept: dict[str, list[Submitted]] = field(default_factory=dict)
    """Jobs that wait or run already, by part."""
    planned: list[Planned] = field(default_factory=list)
    submitted: list[Submitted] = field(default_factory=list)


class Submission:
    """One call of `drope submit`."""

    def __init__(self, recipe: Recipe, profile: StageProfile, stages: Sequence[Stage], *, dry: bool) -> None:
        self.recipe, self.profile, self.dry = recipe, profile, dry
        self.folder = JobsFolder(recipe.folder)
        asked = {stage.name for stage in stages}
        pending = [stage for stage in stages_of(recipe) if not is_complete(stage, recipe)]
        self._all_parts = parts_of(recipe, profile, pending)
        self.parts = [part for part in self._all_parts if part.stage.name in asked]
        self.chain = Chain(skipped=[stage.name for stage in stages if stage not in pending])
        self._names = JobNames(recipe.name, self.folder.label if self.folder.exists else _UNKNOWN_LABEL)
        self._active: list[JobState] = []

    def run(self) -> Chain:
        """Raises: RecipeError, SlurmError, SlurmUnreachable. Jobs accepted until then are kept, and found again."""
        if self.dry:
            self._plan_all(recipe_copy(self.recipe, self.folder))
            return self.chain
        with only_one(self.folder.lock, f"drope submit of {self.recipe.name}"):
            self._active = self._known_jobs()
            self._plan_all(write_recipe_copy(self.recipe, self.folder))
            for planned in self.chain.planned:
                planned.script.write_text(planned.text, encoding="utf-8")
            for planned in self.chain.planned:
                client.check(planned.script, planned.part.name, planned.job.resources)
            for planned in self.chain.planned:
                self._submit(planned)
        return self.chain

    def _known_jobs(self) -> list[JobState]:
        """This run's jobs that wait or run. Ones that a submit which was cut off did not write down are added now."""
        active = [state for state in client.listed(self._names.are_ours) if state.is_active]
        journal = self.folder.submitted()
        known = {job.job_id for job in journal}
        for job_id in sorted({state.job_id for state in active} - known):
            states = [state for state in active if state.job_id == job_id]
            found = self._as_submitted(states)
            if found is not None:
                log.warning(
                    "job %d (%s) was accepted by SLURM before a submit was cut off; it is kept", job_id, found.part
                )
                self.folder.add(found)
        return active

    def _as_submitted(self, states: list[JobState]) -> Submitted | None:
        """What would have been written down of a job."""
        name, offset = self._names.read(states[0].name)
        part = next((part for part in self._all_parts if part.name == name), None)
        if part is None:
            return None
        tasks = [state.task + offset for state in states if state.task is not None]
        return self._record(part, states[0].job_id, "", tasks, offset)

    def _plan_all(self, recipe_file: Path) -> None:
        """Raises: RecipeError if a stage before those asked for is neither complete nor on its way."""
        for part in self.parts:
            for need in part.needs:
                if not self._is_own(need) and not self._on_their_way(need):
                    raise RecipeError(
                        f"--from {self.parts[0].stage.name}: stage {part.stage.name} needs stage "
                        f"{need.removesuffix('-merge')}, which is not complete"
                    )
        anew: set[str] = set()
        for part in self.parts:
            kept = self._kept(part, anew)
            if kept and part.does != "tasks":
                self.chain.kept[part.name] = kept
                self._readmit(part, kept[-1])
                continue
            planned = self._planned(part, recipe_file, kept)
            self.chain.planned += planned
            if kept:
                self.chain.kept[part.name] = kept
            if planned:
                anew.add(part.name)

    def _is_own(self, name: str) -> bool:
        """Whether this submission is about the part."""
        return any(part.name == name for part in self.parts)

    def _on_their_way(self, name: str) -> list[Submitted]:
        """Jobs of a part that wait or run; in a dry run all of them, as SLURM is not asked."""
        active = {state.job_id for state in self._active}
        return [job for job in self.folder.submitted() if job.part == name and (self.dry or job.job_id in active)]

    def _kept(self, part: Part, anew: set[str]) -> list[Submitted]:
        """Jobs of the part that wait or run. One that waits for a part which begins anew could never begin: it ends."""
        if self.dry:
            return []
        ids = {job.job_id for job in self._on_their_way(part.name)}
        if ids and anew & set(part.needs):
            waiting = [number for number in ids if not any(s.is_running for s in self._active if s.job_id == number)]
            log.info("%s: job %s waited for what begins anew; it is replaced", part.name, ", ".join(map(str, waiting)))
            client.cancel([str(number) for number in waiting])
            ids -= set(waiting)
        return [job for job in self.folder.submitted() if job.job_id in ids]

    def _readmit(self, part: Part, job: Submitted) -> None:
        if part.stage.spans_nodes and any(s.job_id == job.job_id and s.state == "PENDING" for s in self._active):
            again = readmit(self.folder, part.name, job.job_id, resources_of(part, self.recipe, self.profile))
            if again:
                log.warning(
                    "%s: too few nodes are up without %s; the job may use it again", part.name, ", ".join(again)
                )

    def _planned(self, part: Part, recipe_file: Path, kept: list[Submitted]) -> list[Planned]:
        """The part's scripts: one, or for an array as many as its tasks need under the cluster's MaxArraySize."""
        if part.does != "tasks" or not isinstance(part.stage, ArrayStage):
            return [self._script(part, recipe_file)]
        on_their_way = self._active_tasks(kept)
        tasks = [task for task in part.stage.undone_tasks(self.recipe, part.tasks) if task not in on_their_way]
        size = int(client.setting("MaxArraySize", str(_DEFAULT_ARRAY_SIZE)))
        chunks: dict[int, list[int]] = {}
        for task in tasks:
            chunks.setdefault(task // size * size, []).append(task)
        return [
            self._script(part, recipe_file, [task - offset for task in members], offset)
            for offset, members in chunks.items()
        ]

    def _active_tasks(self, kept: list[Submitted]) -> set[int]:
        offsets = {job.job_id: job.offset for job in kept}
        return {
            state.task + offsets[state.job_id]
            for state in self._active
            if state.job_id in offsets and state.task is not None
        }

    def _script(self, part: Part, recipe_file: Path, indices: Sequence[int] = (), offset: int = 0) -> Planned:
        where = {"recipe_file": recipe_file, "working_dir": Path.cwd(), "name": self._names.write(part.name, offset)}
        job = job_of(part, self.recipe, self.profile, self.folder, indices=indices, offset=offset, **where)
        script = self.folder.scripts / f"{part.name}{f'-{offset}' if offset else ''}.sh"
        return Planned(part, script, script_text(job, self.profile), job, offset)

    def _submit(self, planned: Planned) -> None:
        part, after = planned.part, self._after(planned.part)
        exclude = planned.job.resources.exclude
        self.folder.excluded(part.name).write_text(f"{exclude}\n" if exclude else "", encoding="utf-8")
        answer = client.submit(planned.script, after, accepted=self._newly_accepted(part, planned.offset))
        tasks = [index + planned.offset for index in planned.job.array]
        record = self._record(part, answer, after, tasks, planned.offset)
        self.folder.add(record)
        self.chain.submitted.append(record)

    def _newly_accepted(self, part: Part, offset: int) -> Callable[[], int | None]:
        """Looks for a job of the part that SLURM has although its answer did not come."""
        before = {state.job_id for state in self._active} | {job.job_id for job in self.folder.submitted()}

        def look() -> int | None:
            ours = client.listed(lambda name: name == self._names.write(part.name, offset))
            return min({state.job_id for state in ours} - before, default=None)

        return look

    def _record(self, part: Part, job_id: int, after: str, tasks: Sequence[int], offset: int) -> Submitted:
        return Submitted(
            time=now(),
            part=part.name,
            stage=part.stage.name,
            does=part.does,
            job_id=job_id,
            name=self._names.write(part.name, offset),
            after=after,
            tasks=tuple(tasks),
            offset=offset,
            of=part.tasks,
            log=str(self.folder.logs.absolute() / part.name),
        )

    def _after(self, part: Part) -> str:
        """The dependencies of a part, as sbatch takes them.

        Of an array that was there before, some tasks may have failed and run again in a new one: it only has to end.
        """
        clauses = []
        for need in part.needs:
            fresh = [job.job_id for job in self.chain.submitted if job.part == need]
            before = self.chain.kept.get(need, []) if self._is_own(need) else self._on_their_way(need)
            kept = [job.job_id for job in before]
            clauses += [f"afterok:{job_id}" for job_id in fresh]
            clauses += [f"{'afterany' if fresh else 'afterok'}:{job_id}" for job_id in kept]
        return ",".join(clauses)


def submit(recipe: Recipe, profile: StageProfile, *, first: str | None, last: str | None) -> Chain:
    """Submits the stages from `first` to `last` that are neither complete nor on their way.

    All scripts are written to RUN/jobs/scripts, and SLURM is asked of each whether it could ever run, before the first
    one is submitted.

    Raises: RecipeError and the packages' errors on bad input, SlurmError in sbatch's words, SlurmUnreachable.
    """
    stages = _checked(recipe, profile, first, last)
    client.require_sbatch("to run here: drope run RECIPE")
    refuse_foreign_folder(recipe.folder)
    Submission(recipe, profile, stages, dry=True).run()  # a script that cannot be written leaves no folder
    recipe.folder.mkdir(parents=True, exist_ok=True)
    (recipe.folder / LOCK_FILE).touch()  # marks the folder as a run's
    JobsFolder(recipe.folder).make()
    return Submission(recipe, profile, stages, dry=False).run()


def plan_submission(recipe: Recipe, profile: StageProfile, *, first: str | None, last: str | None) -> Chain:
    """What `submit` would submit; nothing is written, and SLURM is not asked what is on its way.

    Raises: RecipeError and the packages' errors on bad input.
    """
    stages = _checked(recipe, profile, first, last)
    return Submission(recipe, profile, stages, dry=True).run()


def _checked(recipe: Recipe, profile: StageProfile, first: str | None, last: str | None) -> list[Stage]:
    """The stages, after every check that needs no SLURM.

    Raises: RecipeError and the packages' own errors.
    """
    from eval.tasks.hub import offline
    from pipeline.stages.checks import check_recipe

    stages = stages_between(recipe, first, last)
    with offline():  # as the jobs will be
        pending = [stage for stage in stages if not is_complete(stage, recipe)]
        for part in parts_of(recipe, profile, pending):
            resources_of(part, recipe, profile)
        if pending:
            _refuse_absent(recipe)
            check_recipe(recipe, pending)
    return stages


def _refuse_absent(recipe: Recipe) -> None:
    """Raises: RecipeError if the jobs, which have no network, would lack something that the Hub has."""
    from pipeline.tools import fetch

    absent = [state for state in fetch.listing(recipe) if state.lack is not None and not state.asset.optional]
    if of_hub := [state for state in absent if state.asset.repository]:
        more = f" and {len(of_hub) - 1} more" if len(of_hub) > 1 else ""
        raise RecipeError(
            f"not in this machine's Hub cache: {of_hub[0].asset}{more}; bring it first: drope fetch RECIPE"
        )


def as_text(chain: Chain) -> str:
    """What was submitted, for people."""
    lines = [f"{name:<18} complete, not submitted again" for name in chain.skipped]
    for part, jobs in chain.kept.items():
        lines.append(f"{part:<18} job {', '.join(str(job.job_id) for job in jobs)} is on its way already")
    for job in chain.submitted:
        tasks = f", {len(job.tasks)} tasks ({ranges(job.tasks)})" if job.tasks else ""
        after = f", after {job.after}" if job.after else ""
        lines.append(f"{job.part:<18} job {job.job_id}{tasks}{after}")
    return "\n".join(lines)


def as_scripts(chain: Chain) -> str:
    """The exact scripts, each after the command that would submit it."""
    shown = []
    for planned in chain.planned:
        needs = ",".join(
            f"afterok:<{need}>" for need in planned.part.needs if need in {p.part.name for p in chain.planned}
        )
        command = [
            "sbatch",
            "--parsable",
            *([f"--dependency={needs}"] if needs else []),
            shlex.quote(str(planned.script)),
        ]
        shown.append(f"##### {' '.join(command)}\n{planned.text}")
    return "\n".join(shown)
