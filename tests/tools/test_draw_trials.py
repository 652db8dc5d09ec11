"""Properties of the trials that scripts draw, whatever the corpus."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "prepare_data"
sys.path.insert(0, str(TOOLS))

from trials import Utterance, draw_trials  # noqa: E402

from sslsv.errors import DataError  # noqa: E402

# speaker -> (sex, utterances of each session)
corpora = st.lists(
    st.tuples(st.sampled_from("FM"), st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    min_size=2,
    max_size=6,
)


def build(corpus: list[tuple[str, list[int]]]) -> list[Utterance]:
    return [
        Utterance(f"{speaker}/{session}/{number}", str(speaker), str(session), sex)
        for speaker, (sex, sessions) in enumerate(corpus)
        for session, count in enumerate(sessions)
        for number in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(2, 300), st.integers(0, 9), st.floats(0, 1))
def test_properties(corpus: list, count: int, seed: int, same_sex: float) -> None:
    utterances = build(corpus)
    if all(sum(sessions) == 1 for _, sessions in corpus):
        with pytest.raises(DataError, match="two speakers"):
            draw_trials(utterances, count, np.random.default_rng(seed))
        return
    lines = draw_trials(utterances, count, np.random.default_rng(seed), same_sex)
    again = draw_trials(utterances[::-1], count, np.random.default_rng(seed), same_sex)
    assert lines == again

    of = {utterance.file: utterance for utterance in utterances}
    trials = [(label, of[enrol], of[test]) for label, enrol, test in map(str.split, lines)]
    labels = Counter(label for label, _, _ in trials)
    assert labels["1"] == labels["0"] <= count // 2
    assert len({frozenset((a, b)) for _, a, b in trials}) == len(trials)
    assert all(a != b and (label == "1") == (a.speaker == b.speaker) for label, a, b in trials)
    for label, a, b in trials:
        if label == "1" and a.session == b.session:
            assert len({u.session for u in utterances if u.speaker == a.speaker}) == 1


def test_targets_and_pairs_of_speakers_are_spread_evenly() -> None:
    utterances = build([("F", [10, 10])] * 5 + [("M", [2, 1])])
    lines = [line.split() for line in draw_trials(utterances, 200, np.random.default_rng(0))]
    targets = Counter(a.split("/")[0] for label, a, _ in lines if label == "1")
    assert targets["5"] == 2  # all it has
    assert max(targets.values()) - min(targets[str(speaker)] for speaker in range(5)) <= 1
    pairs = Counter(
        frozenset(file.split("/")[0] for file in files) for label, *files in lines if label == "0"
    )
    same = [count for pair, count in pairs.items() if "5" not in pair]
    assert sum(same) == 70
    assert max(same) - min(same) <= 1


def test_sex_not_known() -> None:
    utterances = [Utterance(f"{s}/{n}", str(s), str(n)) for s in range(4) for n in range(5)]
    lines = draw_trials(utterances, 60, np.random.default_rng(0))
    assert Counter(line[0] for line in lines) == {"0": 30, "1": 30}
