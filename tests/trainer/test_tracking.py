"""What a run logs: JSON files, status lines, and wandb, which must never stop a training."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslsv import distributed
from sslsv.errors import UserError
from sslsv.trainer import wandb_run
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.tracking import (
    Tracker,
    duration,
    peak_memory,
    peak_memory_gb,
    status_line,
    time_left,
)

ROOT = Path(__file__).resolve().parents[2]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict_json(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(autouse=True)
def nobody_said_anything(tmp_path, monkeypatch):
    """A folder and a home in which wandb was never set up."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")


# ---------------------------------------------------------------------------- fake wandb


class FakeRun:
    """Keeps what it is given; ``fail`` says in which call it raises."""

    def __init__(self, arguments: dict[str, Any], fail: set[str]):
        self.arguments, self.fail = arguments, fail
        self.axes: dict[str, str | None] = {}
        self.rows: list[dict[str, float]] = []
        self.exit_codes: list[int] = []

    def _check(self, call: str) -> None:
        if call in self.fail:
            raise RuntimeError(f"{call} is broken.\nand more")

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self._check("define_metric")
        assert name not in self.axes, "defined twice"
        self.axes[name] = step_metric

    def log(self, values: dict[str, float]) -> None:  # no step: wandb wants growing ones
        self._check("log")
        assert set(values) <= set(self.axes), "logged before it has an axis"
        self.rows.append(dict(values))

    def finish(self, exit_code: int) -> None:
        self._check("finish")
        self.exit_codes.append(exit_code)


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.calls: list[str] = []
        self.fail: set[str] = set()  # of calls, and modes of init
        self.seen: dict[str, Any] = {}  # by the latest init
        self.error: BaseException = RuntimeError("No API key configured. Use `wandb login`.\nx")

    def init(self, **arguments: Any) -> FakeRun:
        self.calls.append(f"init {arguments['mode']}")
        self.seen = {
            "tty": sys.stdin.isatty(),
            "text": sys.stdin.read(),
            "environment": dict(os.environ),
        }
        if arguments["mode"] in self.fail:
            raise self.error
        self.runs.append(FakeRun(arguments, self.fail))
        return self.runs[-1]

    def teardown(self) -> None:
        self.calls.append("teardown")

    @property
    def run(self) -> FakeRun:
        (run,) = self.runs
        return run


@pytest.fixture
def fake(monkeypatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def tracker(folder: Path, settings: dict[str, Any] | None = None, **fields: Any) -> Tracker:
    return Tracker(folder, TrainerConfig(**{"wandb_mode": "online"} | fields), settings)


def train(tracker: Tracker, first: int = 0, last: int = 2) -> None:
    """Epochs of ten steps."""
    with tracker.running(first, 10 * first):
        for epoch in range(first + 1, last + 1):
            tracker.log_step(10 * epoch - 5, {"loss": epoch + 0.5, "lr": 0.1})
            tracker.log_epoch(epoch, 10 * epoch, {"train/loss": float(epoch)})
            tracker.log_timings(epoch, {"seconds": 2.0 * epoch})


def warnings_in(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "warning" in line]


# ---------------------------------------------------------------------------- files


def test_training_json_holds_each_epoch_under_its_number(tmp_path):
    train(Tracker(tmp_path))
    assert strict_json(tmp_path / "training.json") == {
        "1": {"train/loss": 1.0},
        "2": {"train/loss": 2.0},
    }


def test_numbers_that_are_not_finite_are_null_in_the_files(tmp_path):
    own = Tracker(tmp_path)
    with own.running(0, 0):
        own.log_step(1, {"loss": math.nan})
        own.log_epoch(1, 10, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})
        own.log_timings(1, {"utterances_per_second": math.nan})
    with own.running(1, 10):
        own.log_epoch(2, 20, {"a": 1.0})
    history = strict_json(tmp_path / "training.json")
    assert history == {"1": {"a": None, "b": None, "c": None, "d": 1.5}, "2": {"a": 1.0}}
    assert strict_json(tmp_path / "timings.json")["1"]["utterances_per_second"] is None


def test_timings_are_a_file_of_their_own_with_peak_memory(tmp_path):
    train(Tracker(tmp_path))
    timings = strict_json(tmp_path / "timings.json")
    assert [timings[epoch]["seconds"] for epoch in ("1", "2")] == [2.0, 4.0]
    assert set(timings["1"]) - {"gpu_memory_gb"} == {"seconds", "host_memory_gb"}
    assert timings["1"]["host_memory_gb"] <= timings["2"]["host_memory_gb"]
    assert "seconds" not in strict_json(tmp_path / "training.json")["1"]


def test_a_resumed_run_drops_what_lies_beyond_its_epoch_from_both_files(tmp_path):
    train(Tracker(tmp_path), 0, 3)
    with Tracker(tmp_path).running(1, 10):
        assert list(strict_json(tmp_path / "training.json")) == ["1"]
        assert list(strict_json(tmp_path / "timings.json")) == ["1"]


def test_nothing_is_logged_outside_of_a_run(tmp_path):
    own = Tracker(tmp_path)
    train(own)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    own.log_step(1, {"loss": 0.0})
    own.log_epoch(3, 30, {"train/loss": 0.0})
    own.log_timings(3, {"seconds": 1.0})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_only_the_main_process_logs(tmp_path, monkeypatch, fake):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    train(tracker(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not fake.calls


@pytest.mark.parametrize("name", ["training.json", "timings.json"])
@pytest.mark.parametrize("content", ['{"1": ', '{"one": {}}'])
def test_a_damaged_file_is_refused_before_anything_is_changed(tmp_path, name, content):
    train(Tracker(tmp_path), 0, 2)
    (tmp_path / name).write_text(content)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    with (
        pytest.raises(UserError, match=rf"{name}: .*; move it away"),
        Tracker(tmp_path).running(1, 10),
    ):
        pass
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before


# ---------------------------------------------------------------------------- status line


def test_a_status_line_says_how_a_training_is_doing():
    line = status_line(1.23456, 0.00123, 5120, 10.0, 0.5, 12.34, eta=11520)
    assert line == ("loss 1.2346, lr 1.23e-03, 512 utt/s, data-wait 5 %, 12.3 GB, ETA 3 h 12 min")


@pytest.mark.parametrize("eta", [None, math.inf, math.nan])
def test_without_an_estimate_a_status_line_ends_before_it(eta):
    assert status_line(math.nan, 1.0, 0, 1.0, 1.0, 0.04, eta) == (
        "loss nan, lr 1.00e+00, 0 utt/s, data-wait 100 %, 0.0 GB"
    )


def test_a_status_line_before_any_time_has_passed():
    assert status_line(2.0, 0.1, 8, 0.0, 0.0, 1.0).endswith("0 utt/s, data-wait 0 %, 1.0 GB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (330, "5 min 30 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (11520, "3 h 12 min"),
        (11549, "3 h 12 min"),
        (11551, "3 h 13 min"),
        (86369, "23 h 59 min"),
        (86371, "1 d 0 h"),
        (187200, "2 d 4 h"),
        (172800 + 3600 * 23.6, "3 d 0 h"),
        (86400 * 400, "400 d 0 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1}


@given(st.floats(0, 1e9))
def test_a_duration_is_as_near_as_its_smaller_unit_allows(seconds):
    words = duration(seconds).split()
    pairs = list(zip(map(int, words[::2]), words[1::2], strict=True))
    total = sum(number * UNITS[unit] for number, unit in pairs)
    smallest = UNITS[pairs[-1][1]]
    assert abs(total - seconds) <= 0.5 * smallest + 1e-6
    limits = {"s": 60, "min": 60, "h": 24}
    assert all(number < limits[unit] for number, unit in pairs if unit in limits)
    assert smallest <= max(1, seconds / 24)


def test_the_time_left_is_what_the_pace_so_far_makes_of_it():
    assert time_left(30.0, 10, 40) == 120.0
    assert time_left(30.0, 0, 40) is None  # no step yet
    assert time_left(30.0, 10, 0) is None  # done


def test_peak_memory_of_the_host_is_what_the_kernel_says():
    pages = torch.ones(30_000_000)  # 120 MB
    status = Path("/proc/self/status").read_text()
    kernel = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024 / 1e9
    assert peak_memory()["host_memory_gb"] == pytest.approx(kernel, rel=0.05)
    assert pages[0] == 1


def test_peak_memory_names_that_of_a_gpu_where_one_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert set(peak_memory()) == {"host_memory_gb"}
    assert peak_memory_gb() == peak_memory()["host_memory_gb"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12_300_000_000)
    assert peak_memory()["gpu_memory_gb"] == pytest.approx(12.3)
    assert peak_memory_gb() == pytest.approx(12.3)


# ---------------------------------------------------------------------------- whether wandb


@pytest.mark.parametrize("config", [None, TrainerConfig(), TrainerConfig(wandb_mode="disabled")])
def test_wandb_is_not_even_imported_unless_asked_for(tmp_path, monkeypatch, capsys, config):
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes an import fail
    train(Tracker(tmp_path / "run", config))
    assert warnings_in(capsys) == []
    assert not (tmp_path / "run" / "wandb_id.txt").exists()
    train(tracker(tmp_path / "run"), 2, 3)  # the same, asked for
    assert len(warnings_in(capsys)) == 1


def settings_file(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings").write_text(text)


def test_where_nothing_was_ever_said_wandb_is_disabled():
    assert wandb_run.folder_mode() == "disabled"


def test_the_folder_of_a_login_alone_says_nothing(tmp_path):
    settings_file(tmp_path / "home/.config/wandb", "[default]\nbase_url = https://wandb.me\n")
    assert wandb_run.folder_mode() == "disabled"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_folder_comes_before_the_home_and_a_variable_before_both(tmp_path, monkeypatch, mode):
    other = "offline" if mode == "online" else "online"
    settings_file(tmp_path / "home/.config/wandb", f"[default]\nmode = {mode}\n")
    assert wandb_run.folder_mode() == mode
    settings_file(tmp_path / "folder/wandb", "[default]\nproject = mine\n")
    assert wandb_run.folder_mode() == mode
    settings_file(tmp_path / "folder/wandb", f"[default]\nmode = {other}\n")
    assert wandb_run.folder_mode() == other
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_run.folder_mode() == mode


@pytest.mark.parametrize(
    ("value", "mode"),
    [("dryrun", "offline"), ("run", "online"), ("onlin", "disabled"), ("", "disabled")],
)
def test_other_values_of_the_variable(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    assert wandb_run.folder_mode() == mode


def test_a_folder_that_variables_name_is_the_one_looked_at(tmp_path, monkeypatch):
    settings_file(tmp_path / "dir/.wandb", "[default]\nmode = offline\n")
    settings_file(tmp_path / "etc", "[default]\nmode = online\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "etc"))
    assert wandb_run.folder_mode() == "online"
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "dir"))
    assert wandb_run.folder_mode() == "offline"


def test_damaged_settings_disable_wandb(tmp_path):
    for text in ("mode = online", "[default]\nmode = %(x)s", "\x00"):
        settings_file(tmp_path / "folder/wandb", text)
        assert wandb_run.folder_mode() == "disabled"


def test_the_commands_of_wandb_itself_are_understood(tmp_path):
    found = []
    for command in ["online", "offline", "online", "disabled", "enabled"]:
        subprocess.run(
            [sys.executable, "-m", "wandb", command],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        found.append(wandb_run.folder_mode())
    # `wandb online` in a folder without settings writes nothing.
    assert found == ["disabled", "offline", "online", "disabled", "online"]


def test_the_configuration_comes_before_the_folder(tmp_path, monkeypatch, fake):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tracker(tmp_path / "run", wandb_mode=None))
    train(tracker(tmp_path / "run", wandb_mode="online"), 2, 3)
    train(tracker(tmp_path / "run", wandb_mode="disabled"), 3, 4)
    assert fake.calls == ["init offline", "init online"]


# ---------------------------------------------------------------------------- what wandb is given


def test_a_run_starts_with_the_settings_and_without_secrets(tmp_path, fake):
    settings = {"seed": 3, "trainer": {"epochs": 2}, "hub": {"api_key": "S3CRET"}}
    train(tracker(tmp_path / "my_run", settings, wandb_project="mine", wandb_id="abc"))
    arguments = fake.run.arguments
    assert arguments["config"] == settings | {"hub": {"api_key": "***"}}
    assert arguments["project"] == "mine"
    assert arguments["id"] == "abc"
    assert arguments["name"] == "my_run"
    assert arguments["dir"] == str(tmp_path / "my_run")
    assert (arguments["resume"], arguments["mode"]) == ("allow", "online")


def test_metrics_are_drawn_over_epochs_and_those_of_steps_over_steps(tmp_path, fake, capsys):
    train(tracker(tmp_path / "run"), 0, 2)
    by_name = {name: axis for name, axis in fake.run.axes.items() if axis}
    assert by_name.pop("time/seconds") == by_name.pop("time/host_memory_gb") == "epoch"
    by_name.pop("time/gpu_memory_gb", None)
    assert by_name == {"step/loss": "step", "step/lr": "step", "train/loss": "epoch"}
    rows = [row for row in fake.run.rows if "time/seconds" not in row]
    assert rows == [
        {"step/loss": 1.5, "step/lr": 0.1, "step": 5},
        {"train/loss": 1.0, "epoch": 1, "step": 10},
        {"step/loss": 2.5, "step/lr": 0.1, "step": 15},
        {"train/loss": 2.0, "epoch": 2, "step": 20},
    ]
    times = [row for row in fake.run.rows if "time/seconds" in row]
    assert [(row["epoch"], row["time/seconds"]) for row in times] == [(1, 2.0), (2, 4.0)]
    assert fake.run.exit_codes == [0]
    assert warnings_in(capsys) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_training_that_fails_is_marked_as_failed(tmp_path, fake, error):
    with pytest.raises(error), tracker(tmp_path / "run").running(0, 0):
        raise error
    assert fake.run.exit_codes == [1]


def test_a_resumed_run_goes_over_an_epoch_again_under_the_same_id(tmp_path, fake, capsys):
    train(tracker(tmp_path / "run"), 0, 3)
    train(tracker(tmp_path / "run"), 1, 3)
    one, two = fake.runs
    assert one.arguments["id"] == two.arguments["id"]
    assert (tmp_path / "run/wandb_id.txt").read_text() == one.arguments["id"] + "\n"
    epochs = [row["epoch"] for row in two.rows if "train/loss" in row]
    assert epochs == [2, 3]
    assert warnings_in(capsys) == []


def test_other_runs_have_other_ids(tmp_path):
    ids = {wandb_run.run_id(tmp_path / str(i)) for i in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch("[a-z0-9]{8,64}", name) for name in ids)


def test_the_id_of_the_configuration_is_taken_and_kept(tmp_path):
    first = wandb_run.run_id(tmp_path)
    assert wandb_run.run_id(tmp_path, "mine 1") == "mine 1" != first
    assert wandb_run.run_id(tmp_path) == "mine 1"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"a\nb", b"\x00\x00"])
def test_a_damaged_id_is_replaced(tmp_path, content):
    (tmp_path / "wandb_id.txt").write_bytes(content)
    name = wandb_run.run_id(tmp_path)
    assert re.fullmatch("[a-z0-9]+", name)
    assert wandb_run.run_id(tmp_path) == name


# ---------------------------------------------------------------------------- when wandb fails


def test_without_a_login_a_run_is_logged_offline_after_one_warning(tmp_path, fake, capsys):
    fake.fail = {"online"}
    train(tracker(tmp_path / "run"))
    assert fake.calls == ["init online", "teardown", "init offline"]
    assert len([row for row in fake.run.rows if "train/loss" in row]) == 2
    (warning,) = warnings_in(capsys)
    assert "No API key configured. Use `wandb login`; logging offline" in warning
    assert f"wandb sync {tmp_path / 'run'}/wandb/offline-run-*" in warning


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_wandb_that_does_not_start_is_one_warning(tmp_path, fake, capsys, mode):
    fake.fail = {"online", "offline"}
    train(tracker(tmp_path / "run", wandb_mode=mode))
    (warning,) = warnings_in(capsys)
    assert warning.endswith("Use `wandb login`; training goes on without it")
    assert list(strict_json(tmp_path / "run/training.json")) == ["1", "2"]


def test_a_missing_package_is_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(tracker(tmp_path / "run"))
    (warning,) = warnings_in(capsys)
    assert "training goes on without it" in warning
    assert list(strict_json(tmp_path / "run/training.json")) == ["1", "2"]


@pytest.mark.parametrize("call", ["define_metric", "log", "finish"])
def test_a_wandb_that_breaks_later_is_one_warning(tmp_path, fake, capsys, call):
    fake.fail = {call}
    train(tracker(tmp_path / "run"))
    (warning,) = warnings_in(capsys)
    assert warning == f"warning: wandb: {call} is broken; nothing more is logged to it"
    assert list(strict_json(tmp_path / "run/training.json")) == ["1", "2"]
    assert fake.run.exit_codes == ([] if call == "finish" else [0])


def test_all_that_can_break_is_still_one_warning(tmp_path, fake, capsys):
    fake.fail = {"define_metric", "log", "finish"}
    train(tracker(tmp_path / "run"))
    assert len(warnings_in(capsys)) == 1


def test_an_interruption_while_wandb_starts_is_not_held_up(tmp_path, fake):
    fake.fail, fake.error = {"online"}, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        train(tracker(tmp_path / "run"))
    assert fake.calls == ["init online"]


def test_wandb_finds_nobody_to_ask(tmp_path, fake, monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

        def read(self) -> str:
            raise AssertionError("the terminal was read")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "7")  # the user's own
    before = dict(os.environ)
    train(tracker(tmp_path / "run"))
    assert (fake.seen["tty"], fake.seen["text"]) == (False, "")
    changed = {k: v for k, v in fake.seen["environment"].items() if before.get(k) != v}
    assert changed == {"TERM": "dumb", "WANDB_FINISH_TIMEOUT": "120"}
    assert sys.stdin is terminal
    assert dict(os.environ) == before


# ---------------------------------------------------------------------------- the real wandb

REAL = """
import sys
from pathlib import Path
from sslsv.trainer.config import TrainerConfig
from sslsv.trainer.tracking import Tracker
mode, folder, first, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tracker = Tracker(folder, TrainerConfig(wandb_mode=mode), {"method": {"type": "marked_setting"}})
with tracker.running(first, first):
    for epoch in range(first + 1, last + 1):
        tracker.log_step(epoch, {"loss": float("nan")})
        tracker.log_epoch(epoch, epoch, {"train/marked_metric": 0.5 + epoch})
        tracker.log_timings(epoch, {"seconds": 1.0})
print("trained to the end")
"""

Real = Callable[..., str]


@pytest.fixture
def real(tmp_path) -> Real:
    """Train in a process of its own with the real wandb; returns what it printed."""

    def run(mode: str, first: int, last: int, stdin: int = subprocess.DEVNULL, **kw: Any) -> str:
        words = [mode, str(tmp_path / "run"), str(first), str(last)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
        done = subprocess.run(
            [sys.executable, "-c", REAL, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            env=environment,
            **kw,
        )
        assert done.returncode == 0
        assert done.stdout.endswith("trained to the end\n")
        return done.stdout

    return run


def test_the_real_wandb_logs_offline_and_goes_on_after_a_resume(tmp_path, real):
    said = real("offline", 0, 2, stderr=subprocess.DEVNULL)
    said += real("offline", 1, 3, stderr=subprocess.DEVNULL)
    assert "warning" not in said
    name = (tmp_path / "run/wandb_id.txt").read_text().strip()
    logs = sorted((tmp_path / "run/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(logs) == 2
    for log, values in zip(logs, ([b"1.5", b"2.5"], [b"2.5", b"3.5"]), strict=True):
        content = log.read_bytes()
        assert b"marked_setting" in content
        assert b"step/loss" in content
        for value in values:
            assert re.search(rb"train/marked_metric.{1,6}" + re.escape(value), content, re.DOTALL)


def read_to_the_end(file: int) -> None:
    with suppress(OSError):  # how a terminal ends
        while os.read(file, 4096):
            pass


def test_the_real_wandb_does_not_ask_a_person_at_a_terminal_for_a_login(tmp_path, real):
    controller, terminal = pty.openpty()
    reader = threading.Thread(target=read_to_the_end, args=(controller,))
    reader.start()
    try:  # whoever asked would wait for an answer until the timeout
        said = real("online", 0, 1, stdin=terminal, stderr=terminal)
    finally:
        os.close(terminal)
        reader.join()
        os.close(controller)
    (warning,) = [line for line in said.splitlines() if "warning" in line]
    assert "logging offline" in warning
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
