"""What the comparison of methods runs, leaves out and prints; the runs themselves take hours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import compare_methods
import pytest

from sslsv.config import load_config


def line(method: str, seed: int = 1, eer: float = 20.0, **budget: Any) -> dict[str, Any]:
    results = {
        f"test/sv_cosine/{name}/eer{end}": eer + place + shift
        for place, name in enumerate(compare_methods.LISTS)
        for end, shift in (("", 0.0), ("_low", -2.5), ("_high", 3.5))
    }
    return {
        "method": method,
        "seed": seed,
        "epochs": 20,
        "base_dim": 8,
        "augmentation": True,
        "changed": compare_methods.sizes_of(method, 20),
        "training_s": 90,
        "results": results,
        **budget,
    }


def test_a_row_for_each_budget_the_best_first() -> None:
    lines = [
        line("moco", eer=30),
        line("simclr", 1, 24),
        line("simclr", 2, 28),
        line("moco", eer=22, augmentation=False, training_s=300),
    ]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in compare_methods.table(lines).splitlines()
    ]
    assert rows[0][-4:] == [*compare_methods.LISTS, "min"]
    assert rows[2:] == [
        [
            "moco",
            "20 x 8",
            "no",
            "1",
            "22.00 [19.5, 25.5]",
            "23.00 [20.5, 26.5]",
            "24.00 [21.5, 27.5]",
            "5",
        ],
        # the deviation of two values 4 apart is 4 / sqrt 2
        ["simclr", "20 x 8", "yes", "2", "26.00 ± 2.83", "27.00 ± 2.83", "28.00 ± 2.83", "2"],
        [
            "moco",
            "20 x 8",
            "yes",
            "1",
            "30.00 [27.5, 33.5]",
            "31.00 [28.5, 34.5]",
            "32.00 [29.5, 35.5]",
            "2",
        ],
    ]


def test_loss_and_rank_of_the_first_seed_beside_the_eer() -> None:
    curves = {"loss": [4.0, 3.0, 2.5], "effective_rank": [3.0, 5.0]}
    lines = [
        line("moco", eer=30, **curves | {"effective_rank": [2.0, 4.0]}),
        line("simclr", eer=24, **curves | {"effective_rank": [2.0, 9.0]}),
        line("byol", eer=28, **curves | {"effective_rank": [2.0, 3.0]}),
        line("simclr", seed=2, eer=1, **curves),
        line("vicreg", eer=1, augmentation=False, **curves),
        line("cpc", eer=40, **curves),  # no pooling: its rank is another matter
    ]
    rows = compare_methods.signals(lines).splitlines()
    assert rows[2:7] == [
        "| vicreg, clean | 1.00 | 4.00 → 2.50 | 3.0 → 5.0 |",
        "| simclr | 24.00 | 4.00 → 2.50 | 2.0 → 9.0 |",
        "| byol | 28.00 | 4.00 → 2.50 | 2.0 → 3.0 |",
        "| moco | 30.00 | 4.00 → 2.50 | 2.0 → 4.0 |",
        "| cpc | 40.00 | 4.00 → 2.50 | 3.0 → 5.0 |",
    ]
    # Ranks 3 1 2 against 1 2 3: 1 - 6 * (4 + 1 + 1) / (3 * 8)
    assert rows[-1] == "Spearman of last rank and EER: -0.50 (3 methods)"


def test_what_is_there_already_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int, bool, bool]] = []

    def measure(method: str, seed: int, options: Any, first: bool) -> dict[str, Any]:
        ran.append((method, seed, options.augmentation, first))
        return line(method, seed, augmentation=options.augmentation)

    monkeypatch.setattr(compare_methods, "measure", measure)
    results = tmp_path / "results.jsonl"

    def run(*arguments: str) -> list[tuple[str, int, bool, bool]]:
        ran.clear()
        command = ["compare_methods.py", "--results", str(results), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        compare_methods.main()
        return list(ran)

    assert run("simclr", "moco") == [("simclr", 1, True, True), ("moco", 1, True, False)]
    assert run("simclr", "moco") == []
    assert run("simclr", "--seeds", "1", "2") == [("simclr", 2, True, False)]
    assert run("simclr", "--no-augmentation") == [("simclr", 1, False, False)]
    assert run("simclr", "--no-augmentation") == []
    stored = [json.loads(text) for text in results.read_text().splitlines()]
    assert [(x["method"], x["seed"], x["augmentation"]) for x in stored] == [
        ("simclr", 1, True),
        ("moco", 1, True),
        ("simclr", 2, True),
        ("simclr", 1, False),
    ]
    # Of other sizes than today's it is another run.
    stored[1]["changed"] = ["method.queue_size=64"]
    results.write_text("".join(f"{json.dumps(x)}\n" for x in stored))
    assert run("moco") == [("moco", 1, True, False)]


@pytest.mark.parametrize(
    "method",
    sorted(p.name for p in (compare_methods.ROOT / "models/small").iterdir() if p.is_dir()),
)
def test_every_method_has_the_same_budget(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(compare_methods, "load_config", lambda *a: seen.append(load_config(*a)))
    command = ["compare_methods.py", method, "--data", str(tmp_path), "--no-augmentation"]
    monkeypatch.setattr(sys, "argv", command)

    def measure(method: str, seed: int, options: Any, first: bool) -> dict[str, Any]:
        compare_methods.settings(method, seed, options)
        return {}

    monkeypatch.setattr(compare_methods, "measure", measure)
    monkeypatch.setattr(compare_methods, "read_results", lambda path: [])
    monkeypatch.setattr(compare_methods, "add", lambda path, line: None)
    compare_methods.main()
    (config,) = seen
    trainer, data = config.trainer, config.dataset
    assert (trainer.batch_size, config.encoder.base_dim, config.encoder.encoder_dim) == (64, 8, 256)
    assert not data.augmentation.enable
    # EmoDB's targets share an emotion: they do not join all files of a speaker.
    assert config.evaluation.speakers == "metadata.csv"
    files = {"pool.csv": 1070, "train.csv": 617}[str(data.train)]
    assert trainer.epochs * files == pytest.approx(20 * 1070, rel=0.02)
