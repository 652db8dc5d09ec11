"""The Slurm script: what it asks for, what is refused, and whole jobs on a stand-in for Slurm.

The stand-in's srun does what Slurm's does with signals: it sends USR1 to every process of the step,
and kills the step where it gets a SIGTERM itself. Its nodes are all this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "slurm"))

import launch as tool  # noqa: E402

WAIT = 400  # seconds, for what takes a few

SRUN = """\
#!{python} -SE
import os, signal, subprocess, sys

arguments, nodes = sys.argv[1:], 1
while arguments[0].startswith("-"):
    name, _, value = arguments.pop(0).partition("=")
    nodes = int(value) if name == "--ntasks" else nodes

def step():
    "The commands and every process below them."
    parents = {{}}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(stat[1]), []).append(int(pid))
    found = [command.pid for command in commands]
    for pid in found:
        found += parents.get(pid, [])
    return found

def send(number, frame):
    for pid in step():
        try:
            os.kill(pid, signal.SIGKILL if number == signal.SIGTERM else number)
        except ProcessLookupError:
            pass

numbers = [signal.SIGUSR1, signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
commands = [
    subprocess.Popen(
        arguments,
        env={{**os.environ, "SLURM_NODEID": str(node)}},
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers),
    )
    for node in range(nodes)
]
for number in numbers:
    signal.signal(number, send)
signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
code = max(abs(command.wait()) for command in commands)
sys.exit(code)
"""
SCONTROL = """\
#!/bin/bash
case "$1 $2" in
    "show hostnames") [ -z "$3" ] || printf '%s\\n' localhost localhost ;;
    "show job") echo "JobId=$3 JobState=${JOB_STATE:-RUNNING} Reason=None" ;;
    *) echo "$*" >>"$SLURM_TEST/scontrol"; exit "${SCONTROL_CODE:-0}" ;;
esac
"""
SBATCH = """\
#!/bin/bash
printf '%s\\n' "$@" >"$SLURM_TEST/sbatch"
cp "${@: -1}" "$SLURM_TEST/job.sh"
if [ -n "${SBATCH_ERROR:-}" ]; then echo "$SBATCH_ERROR" >&2; exit 1; fi
echo "$SLURM_TEST_JOB;cluster"
"""
# In the place of python: torchrun as far as this script can tell, with one process below it, of
# shell commands in TRAINING or EVALUATION. Unlike torchrun it is not made to start them again.
PYTHON = """\
#!/bin/bash
commands=$TRAINING
[[ "$*" == *evaluate.py* ]] && commands=$EVALUATION
bash -c "$commands" &
child=$!
trap 'kill -KILL "$child"' TERM
wait "$child"
"""
# Of a training that saves, which takes a while, where it gets a SIGTERM.
SAVES = """\
trap 'sleep 0.5; touch "$RUN/interrupted"; exit 143' TERM
touch "$RUN/started"
for i in {1..600}; do sleep 0.1; done
"""
STUBBORN = """\
trap 'exit 1' TERM
touch "$RUN/started"
for i in {1..600}; do sleep 0.1; done
"""


def _unused_job() -> int:
    """A number of a job from which the script makes a port that nobody uses."""
    for job in range(1_000_000 + os.getpid() % 15000, 1_015_000):
        with socket.socket() as probe:
            try:
                probe.bind(("", 15000 + job % 15000))
            except OSError:
                continue
            return job
    raise AssertionError("no port is free")


JOB = _unused_job()


@dataclass
class Job:
    """A job that runs, as on the first node."""

    process: subprocess.Popen[str]
    run: Path
    folder: Path
    output: str = ""

    def wait_until_started(self, nodes: int = 1) -> None:
        path, until = self.run / "started", time.monotonic() + WAIT
        while not (path.exists() and (nodes == 1 or len(path.read_text()) == nodes)):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.02)

    def send(self, number: int) -> None:
        """As Slurm does before the time is over: to the batch shell alone."""
        os.kill(self.process.pid, number)

    def end(self) -> int:
        self.output = self.process.communicate(timeout=WAIT)[0]
        return self.process.returncode

    @property
    def requests(self) -> list[str]:
        path = self.folder / "scontrol"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's commands, first on PATH; returns the folder in which they note things."""
    programs, folder = tmp_path / "programs", tmp_path / "slurm"
    programs.mkdir()
    folder.mkdir()
    texts = {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": SCONTROL,
        "sbatch": SBATCH,
        "fake_python": PYTHON,
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_TEST", str(folder))
    monkeypatch.setenv("SLURM_TEST_JOB", str(JOB))
    monkeypatch.delenv("PYTHON", raising=False)
    return folder


@pytest.fixture
def fake_python(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is a few shell commands."""
    monkeypatch.setenv("PYTHON", str(slurm.parent / "programs" / "fake_python"))


@pytest.fixture
def dry(config_file: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``dry(...)`` is the script of ``launch.py CONFIG ... --dry_run``."""

    def dry(*arguments: str) -> str:
        code = tool.main([str(config_file), *_with_time(arguments), "--dry_run"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return dry


@pytest.fixture
def refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence of a call that must end with code 2 and write nothing."""

    def refused(*arguments: str, config: Path | None = None) -> str:
        code = tool.main([str(config or config_file), *_with_time(arguments)])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.index("\n") == len(err) - 1, "one line"
        return err.removeprefix("error: ").rstrip("\n")

    return refused


def _with_time(arguments: tuple[str, ...]) -> list[str]:
    given = any(argument.startswith("--time") for argument in arguments)
    return [*arguments] if given else [*arguments, "--time", "20:00:00"]


@pytest.fixture
def start(config_file: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """``start(...)`` submits and then runs what sbatch was given, as Slurm would."""
    jobs: list[Job] = []

    def start(*arguments: str, **environment: str) -> Job:
        run = config_file.parent
        arguments = (str(config_file), "--gpus", "0", "--time", "20:00:00", *arguments)
        assert tool.main(arguments) == 0
        job = {
            "SLURM_JOB_ID": str(JOB),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURMD_NODENAME": "localhost",
            "OMP_NUM_THREADS": "1",
            "RUN": str(run),
        }
        process = subprocess.Popen(
            ["bash", str(slurm / "job.sh")],
            env={**os.environ, **job, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        jobs.append(Job(process, run, slurm))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.communicate()


def directives(script: str) -> dict[str, str]:
    """The options that sbatch reads: before the first command."""
    found = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#SBATCH "):
            break
        (option,) = shlex.split(line.removeprefix("#SBATCH "))
        name, _, value = option.partition("=")
        found[name] = value
    return found


def variable(script: str, name: str) -> list[str]:
    """What bash makes of the line that sets an array."""
    (line,) = re.findall(rf"^{name}=\(.*?\)$", script, re.MULTILINE | re.DOTALL)
    code = f'{line}\nfor value in "${{{name}[@]}}"; do printf \'%s\\0\' "$value"; done'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


# What the script asks for ------------------------------------------------------------------------


def test_every_option_is_in_the_script(dry: Callable[..., str], config_file: Path) -> None:
    text = dry(
        *("--nodes", "2", "--gpus", "4", "--time", "2-12:00:00", "--partition", "gpu_p13"),
        *("--account", "abc@v100", "--qos", "long", "--cpus_per_gpu", "10", "--mem", "160G"),
        *("--name", "first try", "--max_restarts", "5", "trainer.epochs=3"),
    )
    assert directives(text) == {
        "--job-name": "first try",
        "--partition": "gpu_p13",
        "--account": "abc@v100",
        "--qos": "long",
        "--nodes": "2",
        "--ntasks-per-node": "1",
        "--gres": "gpu:4",
        "--cpus-per-task": "40",
        "--mem": "160G",
        "--time": "2-12:00:00",
        "--chdir": os.getcwd(),
        "--output": f"{config_file.parent}/slurm/%j.out",
        "--open-mode": "append",
        "--signal": "B:USR1@120",
        "--requeue": "",
    }
    assert variable(text, "torchrun") == ["--nnodes=2", "--nproc_per_node=4", "--max-restarts=5"]
    train = str(ROOT / "sslsv/bin/train.py")
    assert variable(text, "train") == [train, str(config_file), "trainer.epochs=3"]
    assert variable(text, "evaluate") == []
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=40"} <= set(variable(text, "srun"))


def test_what_is_not_asked_for_is_left_to_the_cluster(dry: Callable[..., str]) -> None:
    text = dry()
    assert not {"--partition", "--account", "--qos", "--mem"} & directives(text).keys()
    assert directives(text)["--job-name"] == "run"
    assert variable(text, "torchrun") == ["--nnodes=1", "--nproc_per_node=1", "--max-restarts=3"]


def test_each_gpu_has_a_core_for_every_loading_process(dry: Callable[..., str]) -> None:
    assert directives(dry("--gpus", "4", "dataset.num_workers=6"))["--cpus-per-task"] == "28"
    text = dry("--gpus", "4", "--cpus", "5", "dataset.num_workers=6")
    assert directives(text)["--cpus-per-task"] == "5"


def test_without_gpus_each_node_has_one_process(dry: Callable[..., str]) -> None:
    text = dry("--gpus", "0", "--nodes", "2", "--cpus", "16")
    assert "--gres" not in directives(text)
    assert directives(text)["--cpus-per-task"] == "16"
    assert variable(text, "torchrun")[:2] == ["--nnodes=2", "--nproc_per_node=1"]


def test_evaluate_uses_the_same_settings(dry: Callable[..., str], config_file: Path) -> None:
    evaluate = variable(dry("--evaluate", "trainer.epochs=3"), "evaluate")
    script = str(ROOT / "sslsv/bin/evaluate.py")
    assert evaluate == [script, str(config_file), "trainer.epochs=3"]


def test_a_relative_run_folder_is_found_from_anywhere(
    dry: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry("run_dir=runs/first")
    assert directives(text)["--output"] == f"{tmp_path}/runs/first/slurm/%j.out"
    assert directives(text)["--chdir"] == str(tmp_path)
    assert directives(text)["--job-name"] == "first"
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"


def test_a_percent_sign_in_the_folder_is_no_pattern_of_slurm(dry: Callable[..., str]) -> None:
    output = directives(dry("run_dir=/runs/50%j of it"))["--output"]
    assert output == "/runs/50%%j of it/slurm/%j.out"


ODD = "a b;c $(touch hacked) `touch hacked` \"d\" 'e' $HOME \\ #\n{f,g} *"


def test_no_text_of_the_user_is_read_by_the_shell(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "x y;$(touch hacked)`"
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(config_file.read_text())
    task = json.dumps([ODD])
    arguments = [str(config), f"evaluation.test.0.trials={task}", "--time", "20:00:00"]
    assert tool.main([*arguments, "--evaluate", "--dry_run", "--name", "a $HOME; b # c"]) == 0
    text = capsys.readouterr().out
    override = f"evaluation.test.0.trials={task}"
    assert variable(text, "train")[1:] == [str(config), override]
    assert variable(text, "evaluate")[1:] == [str(config), override]
    assert directives(text)["--job-name"] == "a $HOME; b # c"
    assert directives(text)["--output"] == f"{folder}/slurm/%j.out"
    # With the commands of Slurm missing the script does its assignments and then ends.
    done = subprocess.run(
        ["/bin/bash", "-c", text],
        cwd=tmp_path,
        env={"SLURM_JOB_NODELIST": "", "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "scontrol names no nodes" in done.stderr) == (1, True)
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize("options", [[], ["--evaluate", "--setup", "module load a; cd 'x y'"]])
def test_bash_can_read_the_script(dry: Callable[..., str], options: list[str]) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=dry(*options), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--nodes", "-2"], "--nodes -2: must be at least 1"),
        (["--gpus", "-1"], "--gpus -1: must be at least 0"),
        (["--cpus", "0"], "--cpus 0: must be at least 1"),
        (["--cpus_per_gpu", "-3"], "--cpus_per_gpu -3: must be at least 1"),
        (["--max_restarts", "-1"], "--max_restarts -1: must be at least 0"),
        (["--gpus", "0", "--cpus_per_gpu", "4"], "--cpus_per_gpu: there is none with --gpus 0"),
        (["--cpus", "8", "--cpus_per_gpu", "4"], "--cpus and --cpus_per_gpu say the same"),
        (["--mem=-4G"], "--mem -4G: must be a number"),
        (["--mem", "lots"], "--mem lots: must be a number"),
        (["--partition", ""], "--partition '': Slurm can be given no empty text"),
        (["--qos", "a\n#SBATCH --nodes=99"], "--qos 'a\\n#SBATCH --nodes=99'"),
        (["--name", "it's"], '--job-name "it\'s"'),
        (["--setup", "echo 'a"], "--setup: is no valid shell command"),
        (["--setup", "module load x \\"], "--setup: is no valid shell command"),
        (["trainer.epoch=3"], "trainer.epoch: unknown key"),
        (["--evaluate", "evaluation.test=[]"], "--evaluate: evaluation.test of"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    refused: Callable[..., str], slurm: Path, arguments: list[str], sentence: str
) -> None:
    assert refused(*arguments).startswith(sentence)
    assert not list(slurm.iterdir()), "nothing was submitted"


@pytest.mark.parametrize(
    "time", "20h|1:2:3:4|1:75:00|1-25|1-2:60|x-2|-5|5-|-|:|1:|12:00:60|1.5|٣:00:00|".split("|")
)
def test_a_time_that_slurm_does_not_know_is_refused(refused: Callable[..., str], time: str) -> None:
    assert refused(f"--time={time}").startswith(f"--time {time}: must be like 20:00:00")


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("20:00:00", 72000),
        ("100:00:01", 360001),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("2-12:30:05", 217805),
    ],
)
def test_each_form_of_a_time_limit(time: str, expected: int) -> None:
    assert tool.seconds(time) == expected


def test_a_job_that_would_be_stopped_as_it_starts_is_refused(refused: Callable[..., str]) -> None:
    assert refused("--time", "4:59") == (
        "--time 4:59: must be at least 5 minutes, of which the last 120 seconds are for saving"
    )


def test_a_batch_that_does_not_divide_over_all_gpus_is_refused(
    refused: Callable[..., str], dry: Callable[..., str]
) -> None:
    assert "trainer.batch_size: 8 does not divide over 12" in refused("--nodes", "3", "--gpus", "4")
    dry("--nodes", "2", "--gpus", "4")
    dry("--nodes", "4", "--gpus", "0")


def test_a_missing_configuration_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "cannot read the configuration" in refused(config=tmp_path / "no.yml")


def test_without_slurm_nothing_is_written(
    refused: Callable[..., str], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "few"
    programs.mkdir()
    (programs / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(programs))
    assert refused().startswith("sbatch is not on PATH")
    assert not (config_file.parent / "slurm").exists()


def test_a_script_that_sbatch_refuses(
    refused: Callable[..., str], slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ERROR", "sbatch: error: invalid partition specified: gpu")
    assert refused().endswith("refuses it (sbatch: error: invalid partition specified: gpu)")


# Jobs --------------------------------------------------------------------------------------------


def test_the_script_is_written_and_submitted(
    config_file: Path, slurm: Path, capsys: pytest.CaptureFixture[str], dry: Callable[..., str]
) -> None:
    arguments = [str(config_file), "--time", "20:00:00"]
    assert tool.main(arguments) == 0
    folder = config_file.parent / "slurm"
    assert capsys.readouterr().out == (
        f"job {JOB} is submitted; its output will be {folder}/{JOB}.out\n"
    )
    assert (slurm / "sbatch").read_text().splitlines() == ["--parsable", f"{folder}/launch.sh"]
    assert [path.name for path in folder.iterdir()] == ["launch.sh"]
    without_command = [re.sub("# Written by: .*", "", (folder / "launch.sh").read_text())]
    assert without_command == [re.sub("# Written by: .*", "", dry())]


def test_a_job_trains_and_evaluates(start: Callable[..., Job], config_file: Path) -> None:
    job = start("trainer.epochs=1", "--evaluate", "--max_restarts", "0")
    assert job.end() == 0, job.output
    run = config_file.parent
    assert list(json.loads((run / "training.json").read_text())) == ["1"]
    assert "test/sv_cosine/trials/eer" in json.loads((run / "evaluation.json").read_text())
    assert job.requests == []
    assert [path.name for path in (run / "slurm").iterdir()] == ["launch.sh"]


# A training below the real torchrun, which starts again what ends with an error.
TRAINING = """\
import os, signal, sys, time
time.sleep(2)  # as long as it takes to import torch, in which a SIGTERM ends it
run, rank = os.environ["RUN"], os.environ["RANK"]
def save(number, frame):
    with open(f"{run}/signals", "a") as file:
        print(signal.Signals(number).name, rank, "of", os.environ["WORLD_SIZE"], file=file)
    time.sleep(2)
    open(f"{run}/interrupted", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
with open(f"{run}/arguments", "w") as file:
    file.write(" ".join(sys.argv[1:]))
with open(f"{run}/started", "a") as file:
    file.write("1")
time.sleep(100)
"""


def test_torchrun_neither_kills_nor_restarts_a_training_that_saves(
    start: Callable[..., Job],
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "clone/sslsv/bin/train.py"
    program.parent.mkdir(parents=True)
    program.write_text(TRAINING)
    monkeypatch.setattr(tool, "ROOT", tmp_path / "clone")
    job = start("trainer.epochs=3", "--nodes", "2")
    job.wait_until_started(nodes=2)
    job.send(signal.SIGUSR1)
    assert job.end() == 0, job.output
    run = config_file.parent
    received = (run / "signals").read_text().splitlines()
    assert sorted(received) == ["SIGTERM 0 of 2", "SIGTERM 1 of 2"], "once each"
    assert (run / "arguments").read_text() == f"{config_file} trainer.epochs=3"
    assert "closing signal" not in job.output.partition("exitcode: 143")[0]
    assert (run / "interrupted").exists(), "no training has been started that went on"
    assert job.requests == [f"requeue {JOB}"]


@pytest.mark.usefixtures("fake_python")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_training_that_is_stopped_saves_and_is_requeued(
    start: Callable[..., Job], number: int
) -> None:
    job = start(TRAINING=SAVES)
    job.wait_until_started()
    job.send(number)
    assert job.end() == 0, job.output
    assert (job.run / "interrupted").exists()
    assert job.requests == [f"requeue {JOB}"]


@pytest.mark.usefixtures("fake_python")
def test_a_second_signal_does_not_end_the_saving(start: Callable[..., Job]) -> None:
    job = start(TRAINING=SAVES)
    job.wait_until_started()
    job.send(signal.SIGUSR1)
    time.sleep(0.2)
    job.send(signal.SIGTERM)
    assert job.end() == 0, job.output
    assert (job.run / "interrupted").exists()
    assert job.requests == [f"requeue {JOB}"]


@pytest.mark.usefixtures("fake_python")
def test_a_training_that_could_not_save_is_requeued_all_the_same(
    start: Callable[..., Job],
) -> None:
    job = start(TRAINING=STUBBORN)
    job.wait_until_started()
    job.send(signal.SIGUSR1)
    assert job.end() == 0, job.output
    assert job.requests == [f"requeue {JOB}"]


@pytest.mark.usefixtures("fake_python")
def test_a_training_that_stopped_on_a_signal_of_its_own_is_requeued(
    start: Callable[..., Job],
) -> None:
    job = start(TRAINING='touch "$RUN/interrupted"; exit 143')
    assert job.end() == 0, job.output
    assert job.requests == [f"requeue {JOB}"]


@pytest.mark.usefixtures("fake_python")
def test_a_job_that_was_cancelled_is_not_requeued(start: Callable[..., Job]) -> None:
    job = start(TRAINING=SAVES, JOB_STATE="CANCELLED")
    job.wait_until_started()
    job.send(signal.SIGTERM)
    assert job.end() == 143, job.output
    assert (job.run / "interrupted").exists()
    assert job.requests == []


@pytest.mark.usefixtures("fake_python")
def test_a_training_that_fails_is_not_requeued_whatever_an_earlier_one_left(
    start: Callable[..., Job], config_file: Path
) -> None:
    (config_file.parent / "interrupted").touch()
    job = start("--evaluate", TRAINING="exit 3", EVALUATION='touch "$RUN/evaluated"')
    assert job.end() == 3, job.output
    assert job.requests == []
    assert not (job.run / "evaluated").exists()


@pytest.mark.usefixtures("fake_python")
def test_a_training_that_finished_in_spite_of_the_signal_is_not_requeued(
    start: Callable[..., Job],
) -> None:
    finishes = SAVES.replace('touch "$RUN/interrupted"; exit 143', "exit 0")
    assert finishes != SAVES
    job = start(TRAINING=finishes)
    job.wait_until_started()
    job.send(signal.SIGUSR1)
    assert job.end() == 0, job.output
    assert job.requests == []


@pytest.mark.usefixtures("fake_python")
def test_a_signal_during_the_setup_requeues_without_training(start: Callable[..., Job]) -> None:
    setup = 'touch "$RUN/started"; for i in {1..20}; do sleep 0.1; done'
    job = start("--setup", setup, TRAINING='touch "$RUN/trained"')
    job.wait_until_started()
    job.send(signal.SIGUSR1)
    assert job.end() == 0, job.output
    assert not (job.run / "trained").exists()
    assert job.requests == [f"requeue {JOB}"]


@pytest.mark.usefixtures("fake_python")
def test_the_setup_is_what_the_training_runs_in(start: Callable[..., Job]) -> None:
    job = start("--setup", "export COLOUR='dark blue'", TRAINING='echo "in $COLOUR"')
    assert job.end() == 0
    assert job.output == "in dark blue\n"


@pytest.mark.usefixtures("fake_python")
def test_a_setup_that_fails_ends_the_job(start: Callable[..., Job]) -> None:
    job = start("--setup", "true; false", TRAINING='touch "$RUN/trained"')
    assert job.end() == 1
    assert job.output == "launch.sh: --setup failed\n"
    assert not (job.run / "trained").exists()


@pytest.mark.usefixtures("fake_python")
def test_an_evaluation_that_is_cut_off_is_tried_once_more(start: Callable[..., Job]) -> None:
    for requests, code in ([f"requeue {JOB}"], 0), ([f"requeue {JOB}"], 1):
        job = start("--evaluate", TRAINING="exit 0", EVALUATION=STUBBORN)
        job.wait_until_started()
        job.send(signal.SIGUSR1)
        assert job.end() == code, job.output
        assert job.requests == requests
        (job.run / "started").unlink()
    assert "the evaluation was stopped twice" in job.output


@pytest.mark.usefixtures("fake_python")
def test_a_cluster_that_does_not_requeue(start: Callable[..., Job]) -> None:
    job = start(TRAINING='touch "$RUN/interrupted"', SCONTROL_CODE="1")
    assert job.end() == 1
    assert f"submit {job.run}/slurm/launch.sh by sbatch" in job.output
