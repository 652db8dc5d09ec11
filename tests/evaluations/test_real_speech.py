"""The figure that docs/results.md gives for MFCC statistics on real speech, measured again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslsv.datasets.views import DatasetConfig
from sslsv.evaluations.baselines import mfcc_statistics
from sslsv.evaluations.cosine import SVCosine, SVCosineConfig


def test_mfcc_statistics_on_real_trials(real_data: Path) -> None:
    config = SVCosineConfig(
        type="sv_cosine", num_frames=1, frame_length=None, trials=["trials.txt"]
    )
    task = SVCosine(config, DatasetConfig(base_path=real_data, num_workers=0))
    found = task.run(mfcc_statistics, torch.device("cpu"))
    assert len(found.scores["trials.txt"].scores) == 3230
    assert found.metrics["sv_cosine/trials.txt/eer"] == pytest.approx(13.07, abs=0.05)
