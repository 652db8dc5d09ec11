"""What a trained model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from sslsv.audio import SAMPLE_RATE, torchaudio
from sslsv.encoders import masking

_COEFFICIENTS = 19  # c1 .. c19


def mfcc_statistics(wave: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Mean and standard deviation over time of MFCC 1 to 19: (B, T) -> (B, 38). Learns nothing.

    40 mel bands, 25 ms windows each 10 ms, pre-emphasis 0.97, orthonormal DCT. Rows of different
    ``lengths`` are taken one by one.
    """
    return masking.run(_statistics, wave, lengths, together=False)


def _statistics(wave: Tensor) -> Tensor:
    with torch.autocast(wave.device.type, enabled=False):  # half precision is for encoders
        wave = torchaudio().functional.preemphasis(wave, 0.97)
        mfcc = _mfcc(wave.device)(wave)[:, 1:]  # (B, 19, F), without the level
    return torch.cat((mfcc.mean(dim=2), mfcc.std(dim=2)), dim=1)


@cache
def _mfcc(device: torch.device) -> torch.nn.Module:
    mel = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40}
    transforms = torchaudio().transforms
    return transforms.MFCC(SAMPLE_RATE, _COEFFICIENTS + 1, melkwargs=mel, log_mels=True).to(device)
