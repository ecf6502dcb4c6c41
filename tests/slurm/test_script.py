"""Scripts: what is asked for, that nothing in them becomes code, that they do on a real SLURM what they say."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import client
from slurm.errors import SlurmError
from slurm.job import Job
from slurm.profile import ClusterProfile, Resources
from slurm.script import job_options, script_text
from tests.slurm.trial_cluster import TrialCluster

MakeJob = Callable[..., Job]
NASTY = """a b'c"d`touch injected`$(touch injected);touch injected # %j &|*~!{x,y}"""
FULL = ClusterProfile.model_validate(
    {
        "environment": ["module load cuda/13", "source /opt/venv/bin/activate"],
        "container": {
            "runtime": "apptainer",
            "image": "/images/my image.sif",
            "mounts": ["/data:/data"],
            "options": ["--nv"],
        },
        "scratch": "/scratch/$USER/$(touch injected)/`touch injected`",
        "mail": {"user": "someone@example.org", "on": ["FAIL", "END"]},
        "restarts": {"command": "ssh login1 scontrol requeue"},
    }
)
GPUS = Resources(
    partition="gpu",
    account="lab",
    qos="long",
    reservation="mine",
    constraint="h100&ib",
    exclude="gpu[7,9]",
    time="2-00:00:00",
    nodes=4,
    nodes_min=2,
    cpus=96,
    memory="0",
    gpus=8,
    gpu_type="h100",
    exclusive=True,
    sbatch=("--licenses=x:1",),
    srun=("--mpi=none",),
)


def test_everything_that_a_profile_has_is_asked_for(make_job: MakeJob) -> None:
    options = job_options(make_job(resources=GPUS), FULL)
    for option in (
        *("--partition=gpu", "--account=lab", "--qos=long", "--reservation=mine", "--constraint=h100&ib"),
        *("--exclude=gpu[7,9]", "--time=2-00:00:00", "--nodes=2-4", "--cpus-per-task=96", "--mem=0", "--exclusive"),
        *("--gpus-per-node=h100:8", "--signal=USR1@180", "--requeue", "--kill-on-invalid-dep=yes", "--licenses=x:1"),
        *("--mail-user=someone@example.org", "--mail-type=FAIL,END"),
    ):
        assert option in options
    by_gres = job_options(make_job(resources=GPUS.model_copy(update={"gpus_by": "gres", "gpu_type": None})), FULL)
    assert "--gres=gpu:8" in by_gres
    array = job_options(make_job(resources=Resources(at_once=3), array=(0, 1, 2, 7)), FULL)
    assert "--array=0-2,7%3" in array


def test_the_work_runs_in_the_container(make_job: MakeJob) -> None:
    inside = script_text(make_job(command=("work", "now")), FULL)
    assert "apptainer exec --bind /data:/data" in inside and "--nv '/images/my image.sif' work now" in inside
    pyxis = FULL.model_validate({"container": {"runtime": "pyxis", "image": "nvcr.io#nvidia/pytorch:26.01"}})
    assert "--container-image=nvcr.io#nvidia/pytorch:26.01" in script_text(make_job(), pyxis)


@pytest.mark.parametrize("profile", [FULL, ClusterProfile()])
@pytest.mark.parametrize("array", [(), (0, 1)])
def test_scripts_are_clean_to_shellcheck(
    profile: ClusterProfile, array: tuple[int, ...], make_job: MakeJob, tmp_path: Path
) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck (Debian: apt-get install shellcheck)")
    script = tmp_path / "script.sh"
    job = make_job(resources=GPUS, array=array, command=("echo", NASTY), folder=tmp_path / NASTY)
    script.write_text(script_text(job, profile))
    result = subprocess.run(["shellcheck", "-e", "SC1091,SC2029", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_what_no_option_of_sbatch_can_hold_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(SlurmError, match="a line break or control character cannot stand in an option"):
        script_text(make_job(name="a\n#SBATCH --uid=0"), ClusterProfile())
    with pytest.raises(SlurmError, match="SLURM can write no log below a folder with a backslash"):
        script_text(make_job(folder="/data/a\\b"), ClusterProfile())


def run(job: Job, profile: ClusterProfile, cluster: TrialCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a job that has ended."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    job.folder.mkdir(parents=True, exist_ok=True)
    script = job.folder / "script.sh"
    script.write_text(script_text(job, profile))
    client.check(script, job.name, job.resources)
    job_id = client.submit(script, accepted=lambda: None)
    cluster.wait(lambda: not any(state.is_active for state in client.listed(lambda name: name == job.name)), "it ends")
    return job.log_of(job_id)


def test_nothing_in_names_and_paths_becomes_code(
    make_job: MakeJob, cluster: TrialCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / NASTY.replace("/", "")
    seen = folder / f"seen {NASTY}"
    command = ("bash", "-c", 'printf %s "$1" > "$2"', "name", NASTY, str(seen))
    job = make_job(name=f"n {NASTY}", folder=folder, command=command, files=(folder / "script.sh",))
    scratch = tmp_path / "s p$(touch injected)"
    quiet = ClusterProfile.model_validate({"scratch": str(scratch)})
    log = run(job, quiet, cluster, monkeypatch)
    assert log.is_file(), cluster.command("scontrol", "show", "job", log.name.split(".")[-2])
    assert seen.read_text() == NASTY, log.read_text()
    assert not list(tmp_path.rglob("injected"))
    assert scratch.is_dir()


@pytest.mark.slow
def test_a_job_that_stops_in_good_order_is_requeued_up_to_the_cap(
    make_job: MakeJob, cluster: TrialCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "excluded").write_text("node1\n")
    command = ("bash", "-c", "echo run $SLURM_RESTART_COUNT on $SLURMD_NODENAME; exit 75")
    capped = ClusterProfile.model_validate({"restarts": {"most": 2}})
    log = run(make_job(command=command), capped, cluster, monkeypatch).read_text()
    assert [line for line in log.splitlines() if line.startswith("run")] == [
        *("run on node1", "run 1 on node2", "run 2 on node2")
    ]
    assert "\njob: not requeued: restarted 2 times already" in log


def test_messages_name_the_program(make_job: MakeJob) -> None:
    text = script_text(make_job(program="my program", resumed_by="my program again"), ClusterProfile())
    assert text.count("echo 'my program'\": ") == 3
    assert 'what was done is kept, and "\'my program again\'" goes on from it"' in text


def test_a_verdict_counts_more_than_the_code_of_srun(
    make_job: MakeJob, cluster: TrialCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bash", "-c", f"echo 3 > {tmp_path}/verdict.$SLURM_JOB_ID; kill -9 $$")
    log = run(make_job(command=command), ClusterProfile(), cluster, monkeypatch)
    number = log.name.split(".")[-2]
    assert "ExitCode=3:0" in cluster.command("scontrol", "show", "job", number)


def test_a_file_that_comes_late_is_waited_for(
    make_job: MakeJob, cluster: TrialCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "recipe.yaml"
    subprocess.Popen(["bash", "-c", 'sleep 3; echo "it has come" > "$1"', "later", str(late)])
    log = run(make_job(command=("cat", str(late)), files=(late,)), ClusterProfile(), cluster, monkeypatch)
    assert "it has come" in log.read_text()
