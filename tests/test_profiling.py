"""``sslsv profile``: where time is counted, what is written, and that training is left alone."""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DataParallel

from sslsv import cli, experiment, profiling
from sslsv.config import load_config
from sslsv.datasets.views import Batch
from sslsv.encoders.base import Encoder
from sslsv.errors import DataError
from sslsv.profiling import STAGES, Stopwatch, measure
from sslsv.trainer.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
BATCHES = 4  # of an epoch
TRACED = 3  # steps in a trace
SIZES = "projector_hidden_dim: 16, projector_output_dim: 32"
SIMCLR = f"method={{type: simclr, {SIZES}}}"
BYOL = f"method={{type: byol, {SIZES}, predictor_hidden_dim: 16}}"
SSPS = (
    f"method={{type: simclr, {SIZES}, "
    "ssps: {start_epoch: 0, kmeans_nb_prototypes: 4, pos_queue_size: 8}}"
)

Build = Callable[..., Trainer]


@pytest.fixture
def build(config_file: Path) -> Build:
    """The trainer that the command builds, with settings changed."""
    return lambda *overrides: experiment.build_trainer(load_config(config_file, overrides))


class FakeClock:
    """Seconds pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowed(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slowed


class TestStopwatch:
    def test_a_stage_does_not_count_what_is_within_it(self) -> None:
        clock = FakeClock()
        watch = Stopwatch(clock=clock)
        clock.now = 1000
        watch.start()
        clock.now += 1
        with watch.stage("head"):
            clock.now += 2
            for _ in range(2):
                with watch.stage("encoder"):
                    clock.now += 4
                    with watch.stage("front-end"):
                        clock.now += 16
            clock.now += 64
        clock.now += 128
        step = watch.stop()
        assert step.seconds == 235
        expected = {"other": 129, "head": 66, "encoder": 8, "front-end": 32}
        assert {name: x for name, x in step.stages.items() if x} == expected

    def test_each_step_starts_from_nothing(self) -> None:
        clock = FakeClock()
        watch = Stopwatch(clock=clock)
        steps = []
        for seconds in (3, 5):
            clock.now += 100  # between two steps
            watch.start()
            with watch.stage("loss"):
                clock.now += seconds
            steps.append(watch.stop())
        assert [(step.seconds, step.stages["loss"]) for step in steps] == [(3, 3), (5, 5)]

    def test_work_of_the_device_counts_where_it_was_asked_for(self) -> None:
        clock, queued = FakeClock(), [0.0]

        def wait() -> None:
            clock.now += queued[0]
            queued[0] = 0

        watch = Stopwatch(wait, clock)
        queued[0] = 1  # of an earlier step
        watch.start()
        queued[0] += 2
        with watch.stage("encoder"):
            queued[0] += 4
            with watch.stage("front-end"):
                queued[0] += 8
            queued[0] += 16
        with watch.stage("loss"):
            queued[0] += 32
        queued[0] += 64
        step = watch.stop()
        expected = {"other": 66, "encoder": 20, "front-end": 8, "loss": 32}
        assert {name: x for name, x in step.stages.items() if x} == expected
        assert step.seconds == 126

    def test_an_error_closes_the_stages_that_are_open(self) -> None:
        clock = FakeClock()
        watch = Stopwatch(clock=clock)
        watch.start()
        with pytest.raises(ValueError, match="within"), watch.stage("head"), watch.stage("encoder"):
            raise ValueError("within")
        clock.now += 1
        assert watch.stop().stages["other"] == 1


class SlowLoader:
    """Gives what ``loader`` does, a while later."""

    def __init__(self, loader: Any, clock: FakeClock, seconds: float):
        self.loader, self.clock, self.seconds = loader, clock, seconds

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.clock.now += self.seconds
            yield batch


def slow_down(trainer: Trainer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a step takes a power of two, so that a sum tells what is in it."""

    def slow(owner: Any, name: str, seconds: float) -> None:
        monkeypatch.setattr(owner, name, clock.slow(getattr(owner, name), seconds))

    method = trainer.method
    loss = method.loss

    def loss_with_slow_gradient(*args: Any) -> tuple[Tensor, Any]:
        clock.now += 256
        value, metrics = loss(*args)

        def pass_time(_: Tensor) -> None:
            clock.now += 512

        value.register_hook(pass_time)
        return value, metrics

    trainer.loader = SlowLoader(trainer.loader, clock, 1)  # type: ignore[assignment]
    slow(Batch, "augmented", 2)
    slow(Batch, "to", 4)
    for module in method.modules():
        if isinstance(module, Encoder):
            slow(module.features_extractor, "forward", 8)
            slow(module, "forward", 16)
    slow(method.projector, "forward", 32)
    if trainer.ssps:
        slow(trainer.ssps, "replace", 64)
        slow(trainer.ssps, "keep", 128)
    monkeypatch.setattr(method, "loss", loss_with_slow_gradient)
    slow(trainer.guard, "watch", 1024)
    slow(trainer.optimizer, "step", 2048)
    slow(method, "on_step_end", 4096)
    slow(trainer, "_parts", 8192)


class TestStages:
    @pytest.mark.parametrize(
        ("settings", "encoded", "projected", "parts"),
        [
            ([SIMCLR], 1, 1, 1),  # both views at once
            ([BYOL], 4, 2, 1),  # two views, by student and teacher; students' projector
            ([SIMCLR, "trainer.accumulation=2"], 2, 2, 2),
            ([SSPS, "dataset.ssps=true"], 2, 1, 1),  # and the reference view
        ],
        ids=["simclr", "byol", "accumulation", "ssps"],
    )
    def test_time_counts_for_the_stage_that_took_it(
        self,
        build: Build,
        monkeypatch: pytest.MonkeyPatch,
        settings: list[str],
        encoded: int,
        projected: int,
        parts: int,
    ) -> None:
        trainer, clock = build(*settings), FakeClock()
        slow_down(trainer, clock, monkeypatch)
        measured = measure(trainer, steps=6, warmup=1, clock=clock)
        expected = {
            "data": 1 + 2,  # on a CPU the loader augments
            "transfer": 4,
            "augment": 2,
            "front-end": 8 * encoded,
            "encoder": 16 * encoded,
            "head": 32 * projected,
            "positives": 64 + 128 if trainer.ssps else 0,
            "loss": 256 * parts,
            "backward": 512 * parts,
            "optimiser": 1024 + 2048,
            "bookkeeping": 4096,
            "other": 8192,
        }
        assert len(measured.steps) == 6
        for step in measured.steps:
            assert step.stages == expected
            assert step.seconds == sum(expected.values())

    @pytest.mark.parametrize("method", [SIMCLR, BYOL])
    def test_stages_add_up_to_the_step(self, build: Build, method: str) -> None:
        for step in measure(build(method), steps=1, warmup=0).steps:
            assert sum(step.stages.values()) == pytest.approx(step.seconds, rel=1e-9)
            assert {name for name, x in step.stages.items() if x > 0} == {*STAGES} - {"positives"}

    def test_a_compiled_encoder_stays_one_graph(self, build: Build) -> None:
        torch._dynamo.reset()
        encoder = "encoder={type: tdnn, encoder_dim: 32, channels: [16, 16, 16, 16, 24]}"
        trainer = build(BYOL, encoder)
        for module in (trainer.method.encoder, trainer.method.encoder_momentum):
            module.compile(backend="eager", fullgraph=True)  # refuses what it cannot trace
        compiled = trainer.method.encoder._compiled_call_impl
        [step] = measure(trainer, steps=1, warmup=1).steps
        torch._dynamo.reset()
        assert step.stages["front-end"] == 0
        assert step.stages["encoder"] > 0
        assert trainer.method.encoder._compiled_call_impl is compiled

    def test_an_encoder_within_an_encoder_is_not_taken_out_of_its_graph(self) -> None:
        inner, outer, method = (torch.nn.Module() for _ in range(3))
        inner.__class__ = outer.__class__ = type("Nested", (Encoder,), {})
        outer.pooling = torch.nn.Sequential(inner)
        method.encoder = outer
        assert profiling._encoders(method) == [outer]


class TestSteps:
    def test_an_epoch_that_is_too_short_is_followed_by_the_next(
        self, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer, rows, steps = build(), [], []
        train_step = trainer.train_step

        def spied(batch: Batch) -> Any:
            rows.append(batch.rows)
            steps.append((trainer.epoch, trainer.step))
            return train_step(batch)

        monkeypatch.setattr(trainer, "train_step", spied)
        measure(trainer, steps=8, warmup=1)
        epochs = [torch.cat(rows[i : i + BATCHES]).tolist() for i in range(0, 12, BATCHES)]
        assert len(rows) == 1 + 8 + TRACED == 3 * BATCHES
        assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3
        # Schedules do not run out.
        assert steps == 3 * [(0, step) for step in range(BATCHES)]

    @pytest.mark.parametrize("method", [SIMCLR, BYOL])
    def test_they_do_to_the_weights_what_a_training_does(self, build: Build, method: str) -> None:
        profiled, plain = build(method), build(method)
        measure(profiled, steps=1, warmup=0)  # an epoch together with those of the trace
        plain.method.train()
        plain.sampler.set_epoch(0)
        for batch in plain.loader:
            plain.train_step(batch)
        expected = plain.method.state_dict()
        assert expected["encoder.bn.num_batches_tracked"] > 0
        for name, x in profiled.method.state_dict().items():
            assert torch.equal(x, expected[name]), name

    def test_clusters_are_not_waited_for(self, build: Build) -> None:
        trainer = build(f"method={{type: deepcluster, {SIZES}, nb_prototypes: [4]}}")
        assert trainer.method.wants_pass()
        [step] = measure(trainer, steps=1, warmup=0).steps
        assert step.stages["loss"] > 0

    def test_nothing_stays_timed(self, build: Build) -> None:
        trainer = build(SIMCLR)
        owners = [trainer, trainer.optimizer, *trainer.method.modules()]
        backward = torch.Tensor.backward
        measure(trainer, steps=1, warmup=0)
        assert torch.Tensor.backward is backward
        assert not [
            name for owner in owners for name, x in vars(owner).items() if hasattr(x, "__wrapped__")
        ]

    def test_nothing_stays_timed_after_an_error(
        self, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any) -> None:
            raise DataError("no such file")

        trainer = build(SIMCLR)
        monkeypatch.setattr(trainer.method, "loss", failing)
        backward = torch.Tensor.backward
        with pytest.raises(DataError):
            measure(trainer, steps=1, warmup=0)
        assert torch.Tensor.backward is backward
        assert trainer.method.loss is failing
        assert "forward" not in vars(trainer.method)


# ---------------------------------------------------------------------------- the command

Profile = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(config_file: Path, capsys: pytest.CaptureFixture[str]) -> Profile:
    """``command("a=b")`` is ``sslsv profile CONFIG a=b``: exit code, what it prints and says."""

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["profile", str(config_file), *arguments])
        return code, *capsys.readouterr()

    return command


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def strict_json(text: str | bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def spans(trace: str | bytes) -> Counter[str]:
    """How often each of our spans is in a trace."""
    names = [event["name"] for event in strict_json(trace)["traceEvents"]]
    return Counter(name[6:] for name in names if name.startswith("sslsv/"))


class TestCommand:
    @pytest.mark.parametrize(("method", "encoded"), [(SIMCLR, 1), (BYOL, 4)])
    def test_it_prints_a_table_and_writes_numbers_and_a_trace(
        self, command: Profile, config_file: Path, method: str, encoded: int
    ) -> None:
        before = content(config_file.parent)
        code, out, err = command("--steps", "5", method, "--warmup", "1")
        assert (code, err) == (0, "")

        folder = config_file.parent / "profile"
        written = content(config_file.parent)
        assert written.keys() - before == {
            folder,
            folder / "trace.json",
            folder / "profile.json",
        }
        assert before.items() <= written.items()

        results = strict_json((folder / "profile.json").read_bytes())
        assert (results["steps"], results["warmup"], results["batch_size"]) == (5, 1, 8)
        stages, step = results["stages"], results["step"]
        assert stages.keys() == STAGES.keys()
        assert all(len(row["ms"]) == 5 for row in [*stages.values(), step])
        total = sum(step["ms"])
        for name, row in stages.items():
            assert row["median_ms"] == statistics.median(row["ms"])
            assert row["share_percent"] == pytest.approx(100 * sum(row["ms"]) / total)
            shown = f"{row['median_ms']:.2f} {row['share_percent']:.1f} %"
            lines = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
            assert [line.split()[:4] for line in lines] == (
                [[name, *shown.split()]] if name != "positives" else []
            )
        assert sum(row["share_percent"] for row in stages.values()) == pytest.approx(100)
        assert results["utterances_per_second"] == pytest.approx(5 * 8 / (total / 1000))
        assert results["data_wait_percent"] == stages["data"]["share_percent"]
        assert results["host_memory_gb"] > 0
        assert (
            f"{results['utterances_per_second']:.1f} utterances/s, data-wait "
            f"{results['data_wait_percent']:.1f} %, peak memory "
        ) in out

        found = spans((folder / "trace.json").read_bytes())
        once = STAGES.keys() - {"positives", "other", "front-end", "encoder", "optimiser"}
        assert found == (
            dict.fromkeys([*once, "step"], TRACED)
            | dict.fromkeys(["front-end", "encoder"], TRACED * encoded)
            | {"optimiser": 2 * TRACED}  # gradients are dropped, and used
        )

    def test_a_training_is_what_it_would_have_been(
        self, command: Profile, config_file: Path, tmp_path: Path
    ) -> None:
        def train(*settings: str) -> None:
            assert cli.main(["train", str(config_file), *settings]) == 0

        train("trainer.stop_at_epoch=1")
        before = content(config_file.parent)
        assert command("--steps", "1")[0] == 0
        profile = config_file.parent / "profile"
        after = content(config_file.parent)
        assert {path: x for path, x in after.items() if profile not in (path, path.parent)} == (
            before
        )
        train()
        train(f"run_dir={tmp_path / 'straight'}")
        histories = [p / "training.json" for p in (config_file.parent, tmp_path / "straight")]
        assert histories[0].read_bytes() == histories[1].read_bytes()

    def test_the_trace_may_go_elsewhere_and_be_compressed(
        self, command: Profile, config_file: Path, tmp_path: Path
    ) -> None:
        before = content(config_file.parent)
        trace = tmp_path / "elsewhere/here.json.gz"
        workers = ("dataset.num_workers=1", "dataset.augmentation.enable=true")
        code, out, err = command("--steps", "1", "--trace", str(trace), *workers)
        assert (code, err) == (0, "")
        assert content(config_file.parent) == before
        assert sorted(path.name for path in trace.parent.iterdir()) == [
            "here.json.gz",
            "profile.json",
        ]
        assert spans(gzip.decompress(trace.read_bytes()))["step"] == TRACED
        assert str(trace) in out

    def test_an_interrupt_leaves_an_earlier_trace_as_it_was(
        self, command: Profile, config_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(self: Any, path: str) -> None:
            Path(path).write_text("half of")
            raise KeyboardInterrupt

        trace = config_file.parent / "profile/trace.json"
        trace.parent.mkdir()
        trace.write_text("earlier")
        before = content(config_file.parent)
        monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", interrupted)
        assert command("--steps", "1")[0] == 130
        assert content(config_file.parent) == before

    def test_ssps_and_a_compiled_encoder_are_said(self, build: Build) -> None:
        trainer = build(SSPS, "dataset.ssps=true")
        row = {"median_ms": 1.0, "share_percent": 2.0}
        results: dict[str, Any] = {"stages": dict.fromkeys(STAGES, row), "step": row}
        keys = "method encoder device precision batch_size steps warmup".split()
        results |= dict.fromkeys(keys, "x") | {"compiled": True}
        keys = "utterances_per_second data_wait_percent gpu_memory_gb host_memory_gb".split()
        table = profiling._table(results | dict.fromkeys(keys, 3.0), trainer)
        assert "\n  positives           1.00     2.0 %  SSPS\n" in table
        assert "  part of encoder, which is compiled\n" in table
        assert table.endswith("peak memory 3.0 GB on the GPU, 3.0 GB on the host")


class TestRefused:
    @pytest.fixture
    def refused(self, command: Profile, config_file: Path) -> Callable[..., str]:
        """What is said where nothing may be done."""

        def refused(*arguments: str) -> str:
            before = content(config_file.parent)
            code, _, err = command(*arguments)
            assert code == 2
            assert err.startswith("error: ")
            assert err.index("\n") == len(err) - 1
            assert content(config_file.parent) == before
            return err[7:-1]

        return refused

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--steps", "0"], "--steps: must be at least 1, got 0"),
            (["--steps", "-3"], "--steps: must be at least 1, got -3"),
            (["--warmup", "-1"], "--warmup: must be 0 or more, got -1"),
            (
                ["--trace", "a/profile.json"],
                "--trace: profile.json is where the numbers go; choose another name",
            ),
            (["method.typo=3"], "method.typo: unknown key"),
            (["dataset.train=nowhere.csv"], "{corpus}/nowhere.csv: training list not found"),
        ],
    )
    def test_bad_arguments(
        self, refused: Callable[..., str], corpus: Path, arguments: list[str], said: str
    ) -> None:
        assert refused(*arguments).startswith(said.format(corpus=corpus))

    def test_a_configuration_that_cannot_be_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "nowhere.yml"
        assert cli.main(["profile", str(path)]) == 2
        assert capsys.readouterr().err == (
            f"error: {path}: cannot read the configuration (No such file or directory)\n"
        )

    def test_several_processes(
        self, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert refused().startswith("WORLD_SIZE is 2, but only one process can be profiled; ")

    def test_torchrun_with_one_process_is_fine(
        self, command: Profile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert command("--steps", "1")[0] == 0

    def test_several_gpus(
        self, refused: Callable[..., str], build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = build()
        trainer.network = DataParallel(trainer.method)
        monkeypatch.setattr(profiling, "build_trainer", lambda _: trainer)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert refused() == (
            "2 GPUs are visible, but only one can be profiled; set CUDA_VISIBLE_DEVICES=0"
        )

    def test_a_trace_that_cannot_be_written(
        self, refused: Callable[..., str], tmp_path: Path
    ) -> None:
        folder = tmp_path / "folder.json"
        folder.mkdir()
        said = refused("--steps", "1", "--trace", str(folder))
        assert said == f"{folder}: cannot be written (Is a directory)"
        assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("profile.json"))


class TestScripts:
    def test_the_script_finds_the_package_beside_it(self, tmp_path: Path) -> None:
        script = ROOT / "sslsv/bin/profile_training.py"
        ended = subprocess.run(
            [sys.executable, "-S", str(script), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("usage: profile_training.py ")

    def test_no_script_hides_a_module_of_python(self) -> None:
        scripts = {path.stem for path in (ROOT / "sslsv/bin").glob("*.py")}
        assert "train" in scripts
        assert not scripts & sys.stdlib_module_names
