"""A training that is killed, stopped or loses a process ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from sslsv.files import read_json

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4  # of an epoch: 32 utterances in batches of 8
TIMEOUT = 600  # seconds until something that hangs is given up
TAG = "SSLSV_TEST_TAG"  # in the environment of all processes of a training


class Training:
    """A command in processes of its own, which can be found and killed whatever started them."""

    def __init__(self, world: int, config: Path, run_dir: Path, *words: str, restarts: int = 0):
        overrides = [f"run_dir={run_dir}", "trainer.checkpoint_every_minutes=1e-6", *words]
        command = [sys.executable, str(ROOT / "sslsv" / "bin" / "train.py")]
        if world > 1:
            command = [str(ROOT / "train_ddp.sh"), str(world)]
        self.tag = uuid.uuid4().hex
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", TAG: self.tag}
        environment |= {"PYTHON": sys.executable, "MAX_RESTARTS": str(restarts)}
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            [*command, str(config), *overrides],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pids(self, **environment: str) -> list[int]:
        """Living processes with these variables among theirs."""
        wanted = [f"{k}={v}".encode() for k, v in {TAG: self.tag, **environment}.items()]
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:  # gone, or somebody else's
                continue
            if all(word in words for word in wanted):
                found.append(int(path.parent.name))
        return found

    def kill(self) -> None:
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()

    def wait_for_progress(self, times: int = 1) -> bool:
        """Until the checkpoint was written so many times; False where the training ended first."""
        latest = self.run_dir / "checkpoints" / "model_latest.pt"
        seen, last, until = 0, None, time.monotonic() + TIMEOUT
        while seen <= times:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, "no progress"
            now = latest.stat().st_mtime_ns if latest.exists() else None
            if now is not None and now != last:
                seen, last = seen + 1, now
            time.sleep(0.01)
        return True

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out


@contextmanager
def training(*arguments: object, restarts: int = 0) -> Iterator[Training]:
    found = Training(*arguments, restarts=restarts)  # type: ignore[arg-type]
    try:
        yield found
    finally:
        found.kill()


def run_to_its_end(world: int, config: Path, run_dir: Path, *words: str) -> None:
    with training(world, config, run_dir, *words) as found:
        code, out = found.end()
    assert code == 0, out


def readable(run_dir: Path) -> None:
    """Every checkpoint is whole, at any moment."""
    for path in (run_dir / "checkpoints").glob("model_*.pt"):
        torch.load(path, weights_only=True)


def assert_same(run_dir: Path, straight: Path) -> None:
    states = [
        torch.load(run / "checkpoints" / "model_latest.pt", weights_only=True)
        for run in (run_dir, straight)
    ]
    assert states[0]["epoch"] == states[1]["epoch"]
    for name, x in states[1]["model"].items():
        assert torch.equal(states[0]["model"][name], x), name
    assert read_json(run_dir / "training.json") == read_json(straight / "training.json")
    assert read_json(run_dir / "training.json")


def kill_often(
    world: int, kills: int, epochs: int, config: Path, folder: Path, *words: str
) -> None:
    words = (f"trainer.epochs={epochs}", *words)
    run_to_its_end(world, config, folder / "straight", *words)
    chance, killed = random.Random(kills), 0
    while killed < kills:
        with training(world, config, folder / "killed", *words) as found:
            if not found.wait_for_progress(chance.randint(1, 4)):
                break
            time.sleep(chance.uniform(0, 0.2))
            found.kill()
            killed += 1
        readable(folder / "killed")
    assert killed == kills
    run_to_its_end(world, config, folder / "killed", *words)
    assert_same(folder / "killed", folder / "straight")


@pytest.mark.parametrize("world", [1, 2])
def test_killed_twice_it_is_the_same_training(world, config_file, tmp_path):
    kill_often(world, 2, 8, config_file, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("world", [1, 2])
def test_killed_twenty_times_it_is_the_same_training(world, config_file, tmp_path):
    kill_often(world, 20, 40, config_file, tmp_path, "dataset.num_workers=1")


@pytest.mark.parametrize(
    ("world", "kind"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)]
)
def test_a_signal_saves_the_step_and_the_run_goes_on_from_it(world, kind, config_file, tmp_path):
    words = ("trainer.epochs=12", "trainer.checkpoint_every_minutes=60", "dataset.num_workers=1")
    run_to_its_end(world, config_file, tmp_path / "straight", *words)
    run_dir = tmp_path / "stopped"
    with training(world, config_file, run_dir, *words) as found:
        assert found.wait_for_progress()
        found.process.send_signal(kind)
        code, out = found.end()
    assert code == 128 + kind if world == 1 else code != 0
    assert f"stopped by {kind.name} after epoch" in out
    assert "Traceback" not in out or world > 1  # torchrun's own
    assert "saved; the same command goes on" in (run_dir / "interrupted").read_text()
    run_to_its_end(world, config_file, run_dir, *words)
    assert not (run_dir / "interrupted").exists()
    assert_same(run_dir, tmp_path / "straight")


def test_a_lost_worker_is_replaced(config_file, tmp_path):
    """torchrun starts both anew, from the last checkpoint."""
    words = ("trainer.epochs=12",)
    run_to_its_end(2, config_file, tmp_path / "straight", *words)
    run_dir = tmp_path / "elastic"
    with training(2, config_file, run_dir, *words, restarts=1) as found:
        assert found.wait_for_progress(2)
        (worker,) = [pid for pid in found.pids(RANK="1") if is_the_training(pid)]
        os.kill(worker, signal.SIGKILL)
        code, out = found.end()
    assert code == 0, out
    assert "going on after epoch" in out
    assert_same(run_dir, tmp_path / "straight")


def test_a_lost_worker_ends_the_job_with_its_cause(config_file, tmp_path):
    with training(2, config_file, tmp_path / "lost", "trainer.epochs=1000") as found:
        assert found.wait_for_progress(2)
        (worker,) = [pid for pid in found.pids(RANK="1") if is_the_training(pid)]
        os.kill(worker, signal.SIGKILL)
        code, out = found.end()
        assert not found.pids()
    assert code != 0
    assert "Signal 9 (SIGKILL) received" in out
    readable(tmp_path / "lost")


def is_the_training(pid: int) -> bool:
    """And not one of the processes that read data."""
    status = Path(f"/proc/{pid}/status").read_text()
    parent = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid")))
    return b"RANK=1" not in Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")


def test_a_run_of_two_processes_goes_on_with_one(config_file, tmp_path):
    run_dir = tmp_path / "run"
    run_to_its_end(2, config_file, run_dir, "trainer.epochs=4", "trainer.stop_at_epoch=2")
    with training(1, config_file, run_dir, "trainer.epochs=4") as found:
        code, out = found.end()
    assert code == 0, out
    assert "was saved by 2 processes and goes on with 1" in out
    assert list(read_json(run_dir / "training.json")) == ["1", "2", "3", "4"]
