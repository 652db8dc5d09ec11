"""Train on a Slurm cluster: write a batch script from a few options, and submit it.

    python tools/slurm/launch.py CONFIG [key=value ...] --nodes 2 --gpus 4 --time 20:00:00

The job starts torchrun on every node, with a process for each GPU. Two minutes before its time is
over, or where Slurm stops it for another job, the training saves and the job is put back into the
queue, from where it goes on, until it has finished. The script is <run_dir>/slurm/launch.sh, its
output <run_dir>/slurm/<job>.out. --dry_run prints the script and submits nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works without installing

from sslsv.config import Config, load_config
from sslsv.errors import UserError
from sslsv.files import atomic_write
from sslsv.interrupt import marker

ROOT = Path(__file__).resolve().parents[2]
SIGNAL_SECONDS = 120  # before the end of its time that a job is told to stop
LEAST_SECONDS = 5 * 60  # of a job, to get anywhere: Slurm may send the signal a minute early

UNITS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_SIXTY = "[0-5]?[0-9]"
TIMES = (  # M, M:S; H:M:S; D-H, D-H:M, D-H:M:S
    rf"(?P<minutes>\d+)(:(?P<seconds>{_SIXTY}))?",
    rf"(?P<hours>\d+):(?P<minutes>{_SIXTY}):(?P<seconds>{_SIXTY})",
    rf"(?P<days>\d+)-(?P<hours>[01]?[0-9]|2[0-3])"
    rf"(:(?P<minutes>{_SIXTY})(:(?P<seconds>{_SIXTY}))?)?",
)

# The script: #SBATCH lines, the variables run_dir, marker, python, srun, torchrun, train, evaluate
# (empty: none), FUNCTIONS, the user's --setup, MAIN.
FUNCTIONS = r"""
# The log has everything, also where the job is killed.
export PYTHONUNBUFFERED=1

say() { echo "launch.sh: $*" >&2; }

# Exit code of a child. A signal ends 'wait' early; every trap counts it in $signals.
wait_for() {
    local seen code
    while :; do
        seen=$signals
        wait "$1"
        code=$?
        [ "$seen" = "$signals" ] && return "$code"
    done
}

# On each node: torchrun, whose arguments come after the marker's path and python. Slurm sends a
# signal to every process of a step, so torchrun and the training ignore USR1, and this shell passes
# it on as SIGTERM to the training alone: torchrun, on a SIGTERM of its own, would kill the training
# after 30 seconds.
on_node() {
    local host=false
    [ "${SLURM_NODEID:-0}" = 0 ] && host=true
    marker=$1 signals=0
    trap '' USR1
    "$2" -m torch.distributed.run --rdzv_conf="is_host=$host,read_timeout=300" \
        ${SLURMD_NODENAME:+--local_addr="$SLURMD_NODENAME"} --monitor-interval=5 "${@:3}" &
    agent=$!
    trap stop_node USR1
    trap 'signals=$((signals + 1))' TERM  # Slurm has sent it to torchrun too
    wait_for "$agent"
}

stop_node() {
    signals=$((signals + 1))
    [ "$signals" = 1 ] || return 0
    local training tenths=0
    training=$(pgrep -d ' ' -P "$agent")
    if [ -n "$training" ]; then
        kill -TERM $training
        while ps -o stat= -p "$training" | grep -qv '^Z'; do sleep 0.1; done
        # To torchrun, which looks every five seconds, it ended with an error and is to be started
        # again; where it had finished instead, torchrun ends by itself.
        while [ ! -e "$marker" ] && [ "$tenths" -lt 80 ] && kill -0 "$agent" 2>/dev/null; do
            sleep 0.1
            tenths=$((tenths + 1))
        done
    fi
    kill -TERM "$agent" 2>/dev/null
}

# torchrun on all nodes, with a script and its arguments.
run() {
    local code
    [ "$signals" = 0 ] || return 143
    "${srun[@]}" bash -c "$(declare -f wait_for on_node stop_node); on_node \"\$@\"" launch.sh \
        "$marker" "$python" "${torchrun[@]}" --rdzv_backend=c10d --rdzv_endpoint="$endpoint" \
        --rdzv_id="$SLURM_JOB_ID" "$@" &
    step=$!
    [ "$signals" = 0 ] || kill -USR1 "$step" 2>/dev/null  # it came before $step was known
    wait_for "$step"
    code=$?
    step=
    return "$code"
}

# srun passes USR1 on; a SIGTERM makes it kill the step at once.
on_signal() {
    signals=$((signals + 1))
    say "got SIG$1"
    if [ "$signals" = 1 ] && [ -n "$step" ]; then kill -USR1 "$step" 2>/dev/null; fi
}

requeue() {
    if [[ "$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null)" == *JobState=CANCELLED* ]]; then
        say "cancelled, so not put back into the queue"
        exit 143
    fi
    say "back into the queue, to go on from the last checkpoint"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    say "that failed; where the job is not in the queue, submit $run_dir/slurm/launch.sh by sbatch"
    exit 1
}

signals=0 step=
trap 'on_signal USR1' USR1
trap 'on_signal TERM' TERM
"""

MAIN = r"""
set -u
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
[ "${#nodes[@]}" -gt 0 ] || { say "scontrol names no nodes"; exit 1; }
endpoint=${nodes[0]}:$((15000 + SLURM_JOB_ID % 15000))

rm -f -- "$marker"  # of an earlier job: a training that fails must not be started for ever
run "${train[@]}"
code=$?
ls -A -- "$run_dir" >/dev/null  # NFS may remember for a minute that there was no marker
if [ -e "$marker" ]; then requeue; fi
if [ "$signals" != 0 ] && [ "$code" != 0 ]; then requeue; fi
[ "$code" = 0 ] || exit "$code"
[ "${#evaluate[@]}" -gt 0 ] || exit 0

[ "$signals" = 0 ] || requeue  # to evaluate
cut=$run_dir/slurm/evaluation_cut_$SLURM_JOB_ID
run "${evaluate[@]}"
code=$?
if [ "$signals" != 0 ] && [ "$code" != 0 ]; then
    # It starts anew each time, so it would do so for ever where it does not fit into --time.
    [ -e "$cut" ] && { say "the evaluation was stopped twice; give it more --time"; exit "$code"; }
    touch -- "$cut"
    requeue
fi
rm -f -- "$cut"
exit "$code"
"""


def launch(options: argparse.Namespace) -> None:
    check_options(options)
    config = load_config(options.config, options.overrides)
    try:
        config.check(world_size=options.nodes * max(1, options.gpus))
    except UserError as error:
        raise UserError(f"{options.config}: {error}") from None
    if options.evaluate and not config.evaluation.test:
        raise UserError(
            f"--evaluate: evaluation.test of {options.config} is empty; add a task, or leave "
            "--evaluate out"
        )
    text = script(config, options)
    check_syntax(text)
    if options.dry_run:
        print(text, end="")
        return
    submit(folder_of(config) / "launch.sh", text)


def submit(path: Path, text: str) -> None:
    """Write the script and give it to sbatch; the folder has to be there for the job's output."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on PATH: call this where jobs are submitted from, or see the script "
            "with --dry_run"
        )
    with atomic_write(path, "w") as file:
        file.write(text)
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{path}: sbatch refuses it ({reason})")
    job = done.stdout.strip().partition(";")[0]  # a cluster's name may follow
    print(f"job {job} is submitted; its output will be {path.parent / job}.out")


# What is checked ---------------------------------------------------------------------------------


def check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before the configuration is read."""
    least = {"nodes": 1, "gpus": 0, "cpus": 1, "cpus_per_gpu": 1, "max_restarts": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise UserError(f"--{name} {value}: must be at least {smallest}")
    if options.cpus_per_gpu is not None and options.gpus == 0:
        raise UserError("--cpus_per_gpu: there is none with --gpus 0; use --cpus")
    if options.cpus_per_gpu is not None and options.cpus is not None:
        raise UserError("--cpus and --cpus_per_gpu say the same; give one of them")
    if seconds(options.time) < LEAST_SECONDS:
        raise UserError(
            f"--time {options.time}: must be at least {LEAST_SECONDS // 60} minutes, of which the "
            f"last {SIGNAL_SECONDS} seconds are for saving"
        )
    if options.mem is not None and not re.fullmatch(r"\d+[KMGT]?", options.mem, re.I | re.A):
        raise UserError(f"--mem {options.mem}: must be a number and K, M, G or T, such as 64G")


def seconds(time: str) -> int:
    """Of one of Slurm's formats of a time limit; UserError where it is none of them."""
    found = next(filter(None, (re.fullmatch(form, time, re.A) for form in TIMES)), None)
    if found is None:
        raise UserError(
            f"--time {time}: must be like 20:00:00 (hours), 2-12 or 2-12:00:00 (days and hours), "
            "or a number of minutes"
        )
    parts = {unit: int(number) for unit, number in found.groupdict("0").items()}
    return sum(number * UNITS[unit] for unit, number in parts.items())


def check_syntax(text: str) -> None:
    """Refuse a --setup that would leave a script that bash cannot read."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["bash -n fails"])[0]
        raise UserError(f"--setup: is no valid shell command ({reason})")


# The script --------------------------------------------------------------------------------------


def folder_of(config: Config) -> Path:
    """Where the script and its output go, as a path from anywhere."""
    assert config.run_dir is not None
    return Path(os.path.abspath(config.run_dir)) / "slurm"


def script(config: Config, options: argparse.Namespace) -> str:
    folder = folder_of(config)
    processes = max(1, options.gpus)
    cpus = options.cpus or processes * (options.cpus_per_gpu or config.dataset.num_workers + 1)
    asked = {
        "job-name": options.name if options.name is not None else folder.parent.name,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "gres": f"gpu:{options.gpus}" if options.gpus else None,
        "cpus-per-task": cpus,
        "mem": options.mem,
        "time": options.time,
        "chdir": Path.cwd(),
        "output": str(folder).replace("%", "%%") + "/%j.out",
        "open-mode": "append",
        "signal": f"B:USR1@{SIGNAL_SECONDS}",
    }
    command = ["python", "tools/slurm/launch.py", *(options.arguments or [])]
    experiment = [options.config, *options.overrides]
    evaluate = [ROOT / "sslsv/bin/evaluate.py", *experiment] if options.evaluate else []
    lines = [
        "#!/bin/bash",
        *(directive(name, value) for name, value in asked.items() if value is not None),
        "#SBATCH --requeue",
        "",
        "# Written by: " + shlex.join(command).replace("\n", " "),
        "",
        f"run_dir={quoted(folder.parent)}",
        f"marker={quoted(marker(folder.parent))}",
        f"python={quoted(os.environ.get('PYTHON') or sys.executable)}",
        array(
            "srun",
            "srun",
            f"--nodes={options.nodes}",
            f"--ntasks={options.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={cpus}",
        ),
        array(
            "torchrun",
            f"--nnodes={options.nodes}",
            f"--nproc_per_node={processes}",
            f"--max-restarts={options.max_restarts}",
        ),
        array("train", ROOT / "sslsv/bin/train.py", *experiment),
        array("evaluate", *evaluate),
    ]
    setup = f'\n{{\n{options.setup or ":"}\n}} || {{ say "--setup failed"; exit 1; }}\n'
    return "\n".join(lines) + "\n" + FUNCTIONS + setup + MAIN.lstrip("\n")


def directive(name: str, value: object) -> str:
    """A line for sbatch, which knows quotes but reads no escapes as a shell does."""
    text = str(value)
    if not text or not text.isprintable() or set(text) & set("'\\"):
        raise UserError(
            f"--{name} {text!r}: Slurm can be given no empty text, and none with single quotes, "
            "backslashes or line breaks; choose another"
        )
    return f"#SBATCH --{name}={shlex.quote(text)}"


def array(name: str, *values: object) -> str:
    return f"{name}=({' '.join(map(quoted, values))})"


def quoted(value: object) -> str:
    return shlex.quote(str(value))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and act; returns the exit code. What a user can mend is one sentence and code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file, or the folder of config.yml")
    add("overrides", metavar="key=value", nargs="*", default=[], help="settings to change")
    add("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")
    add("--gpus", type=int, default=1, metavar="N", help="of each node; 0: CPU only (default: 1)")
    add("--time", required=True, metavar="H:M:S", help="limit, after which the job is requeued")
    add("--partition", metavar="P", help="of the cluster")
    add("--account", metavar="A", help="to charge")
    add("--qos", metavar="Q", help="quality of service")
    add("--cpus_per_gpu", type=int, metavar="N", help="cores (default: dataset.num_workers + 1)")
    add("--cpus", type=int, metavar="N", help="cores of each node, in place of --cpus_per_gpu")
    add("--mem", metavar="M", help="memory of each node, such as 64G")
    add("--name", metavar="NAME", help="of the job (default: that of the run's folder)")
    add("--setup", metavar="COMMANDS", help="shell commands to run first, such as 'module load x'")
    add("--evaluate", action="store_true", help="evaluate the trained model in the same job")
    add(
        "--max_restarts",
        type=int,
        default=3,
        metavar="N",
        help="how often torchrun starts a training again that failed (default: 3)",
    )
    add("--dry_run", action="store_true", help="print the script; submit nothing")
    options = parser.parse_intermixed_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        launch(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was submitted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
