"""A job as the script that sbatch takes: readable, and nothing in it is taken for code that is not meant as code."""

import shlex
from pathlib import Path

from slurm.errors import SlurmError
from slurm.job import REQUEUE_CODE, Job, ranges
from slurm.profile import ClusterProfile, Container, Resources

_VISIBLE_SECONDS = 120
_STRAGGLER_SECONDS = 15
"""How long srun waits for other nodes once one has ended; all end within seconds, but one that is gone never does."""


def script_text(job: Job, profile: ClusterProfile) -> str:
    """The batch script of a job; its dependencies are given to sbatch beside it.

    Raises: SlurmError for a name or path that cannot stand in one.
    """
    options = "\n".join(f"#SBATCH {option}" for option in job_options(job, profile))
    parts = [
        f"#!/bin/bash\n# shellcheck disable=SC2016 # what stands in single quotes is meant as it stands\n{options}",
        "set -uo pipefail",
        _restart_cap(job, profile),
        _setting(job, profile),
        _wait_for(job.files),
        _work(job, profile),
        _ending(job, profile),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def job_options(job: Job, profile: ClusterProfile) -> list[str]:
    """What the job asks for, as options of sbatch, quoted as its scripts want them."""
    asked = {
        "job-name": job.name,
        "output": f"{_literal(job.log)}.{'%A_%a' if job.array else '%j'}.log",
        "open-mode": "append",
        "chdir": str(job.folder),
        **_of_resources(job.resources),
        "signal": f"USR1@{profile.restarts.warning_seconds}",
        "kill-on-invalid-dep": "yes",
    }
    if job.array:
        at_once = f"%{job.resources.at_once}" if job.resources.at_once else ""
        asked["array"] = ranges(job.array) + at_once
    if profile.mail:
        asked |= {"mail-user": profile.mail.user, "mail-type": ",".join(profile.mail.on)}
    flags = ["--requeue", *(["--exclusive"] if job.resources.exclusive else [])]
    return [*(f"--{name}={_quoted(value)}" for name, value in asked.items()), *flags, *(job.resources.sbatch or ())]


def _of_resources(resources: Resources) -> dict[str, str]:
    nodes, fewest = resources.nodes or 1, resources.nodes_min or resources.nodes or 1
    plain = {
        name: getattr(resources, name)
        for name in ("partition", "account", "qos", "reservation", "constraint", "exclude", "time")
    }
    options = {
        **plain,
        "nodes": str(nodes) if fewest == nodes else f"{fewest}-{nodes}",
        # With a number of tasks SLURM gives the fewest nodes that hold them, without one as many as there are.
        "ntasks-per-node": "1" if fewest == nodes else None,
        "cpus-per-task": None if resources.cpus is None else str(resources.cpus),
        "mem": resources.memory,
    }
    if resources.gpus:
        kind = f"{resources.gpu_type}:" if resources.gpu_type else ""
        if resources.gpus_by == "gres":
            options["gres"] = f"gpu:{kind}{resources.gpus}"
        else:
            options["gpus-per-node"] = f"{kind}{resources.gpus}"
    return {name: value for name, value in options.items() if value is not None}


def _quoted(value: str) -> str:
    """A value in a line of options: sbatch knows double quotes, and a backslash before what would end them.

    Raises: SlurmError for a line break, which no quotes can hold there.
    """
    if any(ord(character) < 32 for character in value):
        raise SlurmError(f"{value!r}: a line break or control character cannot stand in an option of sbatch")
    if value and all(character.isalnum() or character in "-_./:,=%@+[]&|*" for character in value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal(path: Path) -> str:
    """A path in which sbatch finds no placeholder (%j).

    Raises: SlurmError for a backslash: after one sbatch replaces no placeholder, and the job's id would be missing.
    """
    if "\\" in str(path):
        raise SlurmError(f"{path}: SLURM can write no log below a folder with a backslash in its name")
    return str(path).replace("%", "%%")


def _restart_cap(job: Job, profile: ClusterProfile) -> str:
    most, program = profile.restarts.most, shlex.quote(job.program)
    return f"""restarts=${{SLURM_RESTART_COUNT:-0}}
if [ "$restarts" -gt {most} ]; then
    echo {program}": restarted $restarts times, at most {most} are allowed (restarts.most of the cluster profile)" >&2
    exit 1
fi"""


def _setting(job: Job, profile: ClusterProfile) -> str:
    lines = [*job.environment, *profile.environment]
    if profile.scratch:
        scratch = profile.scratch.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`").replace("$(", "\\$(")
        lines += [f'export TMPDIR="{scratch}"', 'mkdir -p -- "$TMPDIR"']
    return "\n".join(lines)


def _wait_for(files: tuple[Path, ...]) -> str:
    """A file system may show this node late what the submitting one wrote."""
    if not files:
        return ""
    names = " ".join(shlex.quote(str(file)) for file in files)
    return f"""for file in {names}; do
    for ((waited = 0; waited < {_VISIBLE_SECONDS}; waited++)); do
        [ -e "$file" ] && break
        sleep 1
    done
done"""


def _work(job: Job, profile: ClusterProfile) -> str:
    step = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=0", f"--wait={_STRAGGLER_SECONDS}"]
    step += ["--export=ALL", *([f"--cpus-per-task={job.resources.cpus}"] if job.resources.cpus else [])]
    step += job.resources.srun or ()
    words = [*step, *_contained(profile.container, job), *job.command]
    lines = " \\\n    ".join([" ".join(map(shlex.quote, step)), " ".join(map(shlex.quote, words[len(step) :]))])
    return f"""verdict={shlex.quote(str(job.verdict))}.$SLURM_JOB_ID
rm -f -- "$verdict"
{lines}
code=$?
if [ -s "$verdict" ]; then code=$(<"$verdict"); fi"""


def _contained(container: Container | None, job: Job) -> list[str]:
    """What stands before the command so that it runs in the container."""
    if container is None:
        return []
    mounts = [*container.mounts, f"{job.folder}:{job.folder}"]
    if container.runtime == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
        return [*options, f"--container-workdir={job.folder}", *container.options]
    binds = [word for mount in mounts for word in ("--bind", mount)]
    return ["apptainer", "exec", *binds, "--pwd", str(job.folder), *container.options, container.image]


def _ending(job: Job, profile: ClusterProfile) -> str:
    most, command = profile.restarts.most, profile.restarts.command
    program, resumed_by = shlex.quote(job.program), shlex.quote(job.resumed_by)
    excluded, exclusion = shlex.quote(str(job.excluded)), ""
    if command.endswith("scontrol requeue"):
        update = command.removesuffix("requeue") + "update"
        exclusion = f"""if [ -e {excluded} ]; then {update} JobId="$SLURM_JOB_ID" ExcNodeList="$(cat -- {excluded})"; fi
"""
    return f"""if [ "$code" -ne {REQUEUE_CODE} ]; then exit "$code"; fi
# The work stopped in good order and goes on in a new allocation of this same job.
if [ "$restarts" -ge {most} ]; then
    echo {program}": not requeued: restarted $restarts times already (restarts.most of the cluster profile)" >&2
    exit 1
fi
trap '' TERM # being requeued ends this script, but not before its last command
if ! answer=$({command} "$SLURM_JOB_ID" 2>&1) && [[ $answer != *"pending execution"* ]]; then # SLURM has done it
    echo "$answer" >&2
    echo {program}": the job could not be requeued; what was done is kept, and "{resumed_by}" goes on from it" >&2
    exit {REQUEUE_CODE}
fi
{exclusion}exit {REQUEUE_CODE}"""
