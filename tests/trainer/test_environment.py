"""environment.json says what a run was started with, and nothing that is to stay secret."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import socket
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio

import sslsv
from sslsv import distributed
from sslsv.trainer import environment
from sslsv.trainer.environment import git_state, mask_settings, mask_words, record

ARGV = ["sslsv", "train", "models/my run/config.yml", "trainer.epochs=3"]


def starts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "environment.json").read_text())


def git(folder: Path, *arguments: str) -> str:
    user = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-C", str(folder), *user, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=clean
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one file in one commit."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init")
    (root / "a.py").write_text("1\n")
    git(root, "add", "a.py")
    git(root, "commit", "-m", "first")
    return root


# ---------------------------------------------------------------------------- the file


def test_a_start_holds_these_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    record(tmp_path, {"seed": 1717, "trainer": {"epochs": 3}}, ARGV)
    (start,) = starts(tmp_path)

    date = datetime.fromisoformat(start["date"])
    assert date.utcoffset() == timedelta(0)
    assert before <= date <= datetime.now(timezone.utc)
    assert shlex.split(start["command"]) == ARGV
    assert start["python"] == platform.python_version()
    assert start["torch"] == torch.__version__
    assert start["torchaudio"].partition("+")[0] == torchaudio.__version__.partition("+")[0]
    assert start["numpy"] == np.__version__
    assert start["sslsv"] == sslsv.__version__
    assert start["cuda"] == torch.version.cuda
    assert len(start["gpus"]) == torch.cuda.device_count()
    assert start["cpu_count"] == os.cpu_count()
    assert isinstance(start["cpu"], str)
    assert start["cpu"]
    (total,) = re.findall(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    assert start["memory_gb"] == pytest.approx(int(total) * 1024 / 1e9, abs=0.06)
    assert (start["world_size"], start["seed"]) == (4, 1717)
    assert set(start) == set(
        "date command git_commit git_dirty python torch torchaudio numpy sslsv cuda cudnn gpus "
        "system cpu cpu_count memory_gb world_size seed".split()
    )


def test_every_start_is_added_at_the_end(tmp_path):
    for seed in (1, 2, 3):
        record(tmp_path, {"seed": seed}, ARGV)
    assert [start["seed"] for start in starts(tmp_path)] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_the_names_of_gpus_and_the_version_of_cudnn_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU number {i}")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    record(tmp_path, {}, ARGV)
    assert starts(tmp_path)[0]["gpus"] == ["GPU number 0", "GPU number 1"]
    assert starts(tmp_path)[0]["cudnn"] == 91002


def test_a_cudnn_that_does_not_fit_torch_is_no_failure(tmp_path, monkeypatch):
    def refuse() -> int:
        raise RuntimeError("cuDNN version incompatibility")

    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    record(tmp_path, {}, ARGV)
    assert starts(tmp_path)[0]["cudnn"] is None


def test_the_name_of_the_machine_is_not_recorded(tmp_path, monkeypatch):
    name = "machine-with-a-name"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(platform, "node", lambda: name)
    record(tmp_path, {}, ARGV)
    assert name not in (tmp_path / "environment.json").read_text()
    assert os.uname().nodename not in starts(tmp_path)[0].values()


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    record(tmp_path, {}, ARGV)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b'[{"seed": 1}', b"", b"\xff\xfe", b'{"seed": 1}', b"null", b"[" * 100_000],
    ids=["cut", "empty", "bytes", "object", "null", "deep"],
)
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, capsys, content):
    path = tmp_path / "environment.json"
    path.write_bytes(content)
    record(tmp_path, {"seed": 5}, ARGV)
    assert [start["seed"] for start in starts(tmp_path)] == [5]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {path}: ")
    assert line.endswith("; it is written anew")


def test_a_start_that_cannot_be_written_keeps_the_earlier_ones(tmp_path, monkeypatch):
    record(tmp_path, {"seed": 1}, ARGV)
    with pytest.raises(TypeError):
        record(tmp_path, {"seed": object()}, ARGV)  # fails in the middle of writing
    assert [start["seed"] for start in starts(tmp_path)] == [1]


# ---------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("words", "masked"),
    [
        (["api_key=abc"], ["api_key=***"]),
        (["a.Password=abc"], ["a.Password=***"]),
        (["HF_TOKEN=abc=def"], ["HF_TOKEN=***"]),
        (["--client-secret=abc"], ["--client-secret=***"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["WANDB_API_KEY="], ["WANDB_API_KEY=***"]),
        (["--token", "abc", "more"], ["--token", "***", "more"]),
        (["--token", "--secret", "abc"], ["--token", "***", "abc"]),
        (["token", "abc"], ["token", "abc"]),  # no key of anything
        (["path=my/token"], ["path=my/token"]),
        (["trainer.epochs=3", "key=4"], ["trainer.epochs=3", "key=4"]),
        ([], []),
    ],
)
def test_values_of_words_that_look_secret_are_masked(words, masked):
    assert mask_words(words) == masked


def test_the_command_is_masked(tmp_path):
    record(tmp_path, {}, [*ARGV, "x.api_key=S3CRET", "y.token=S3CRET", "--password", "S3CRET"])
    assert "S3CRET" not in (tmp_path / "environment.json").read_text()
    words = shlex.split(starts(tmp_path)[0]["command"])
    assert words == [*ARGV, "x.api_key=***", "y.token=***", "--password", "***"]


def test_settings_lose_texts_whose_key_looks_secret_and_nothing_else():
    settings = {
        "seed": 1,
        "nb_tokens": 5,  # a number
        "hub": {"access_token": "abc", "name": "x"},
        "list": [{"password": "abc"}, "password", 2.5, None, True],
    }
    assert mask_settings(settings) == {
        "seed": 1,
        "nb_tokens": 5,
        "hub": {"access_token": "***", "name": "x"},
        "list": [{"password": "***"}, "password", 2.5, None, True],
    }
    assert settings["hub"]["access_token"] == "abc"  # it is a copy


# ---------------------------------------------------------------------------- git


def test_a_clean_checkout_has_a_commit_and_is_not_dirty(checkout):
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("staged", [False, True])
def test_a_changed_file_makes_a_checkout_dirty(checkout, staged):
    (checkout / "a.py").write_text("2\n")
    if staged:
        git(checkout, "add", "a.py")
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), True)


def test_a_new_file_such_as_a_run_does_not(checkout):
    (checkout / "run").mkdir()
    (checkout / "run" / "training.json").write_text("{}")
    assert git_state(checkout)[1] is False


def test_a_folder_within_another_checkout_is_none_of_its_own(checkout):
    inner = checkout / "site-packages"
    inner.mkdir()
    assert git_state(inner) == (None, None)


def test_a_repository_without_a_commit_is_no_failure(tmp_path):
    git(tmp_path, "init")
    assert git_state(tmp_path) == (None, None)


def test_variables_of_a_git_hook_do_not_point_elsewhere(checkout, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


def test_a_machine_without_git_is_no_failure(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert git_state(checkout) == (None, None)


def test_a_git_that_hangs_is_no_failure(checkout, monkeypatch, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(environment, "_GIT_SECONDS", 0.1)
    assert git_state(checkout) == (None, None)


def test_the_commit_is_that_of_the_project(tmp_path):
    root = Path(sslsv.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("sslsv is not in a checkout")
    record(tmp_path, {}, ARGV)
    assert starts(tmp_path)[0]["git_commit"] == git(root, "rev-parse", "HEAD")
