"""InfoNCE against the sum it is, and CPC against its recurrences written out."""

import math

import numpy as np
import pytest
import torch
from cases import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslsv.config import from_dict
from sslsv.encoders.resnet34 import ResNet34, ResNet34Config
from sslsv.errors import ConfigError, DataError
from sslsv.methods.cpc import CPC, CPCConfig, info_nce

N, STEPS, SAMPLES = 4, 3, 600
SEEDS = st.integers(0, 1000)
FORMS = [
    {},
    {"bidirectional": True},
    {"target": "same_view"},
    {"target": "same_view", "bidirectional": True, "aggregator_type": "lstm"},
    {"aggregator_type": "lstm"},
    {"aggregator_nb_layers": 2},
]


def make_method(**fields: object) -> CPC:
    fields = {"nb_t_to_predict": STEPS, "aggregator_dim": 5} | fields
    return CPC(CPCConfig(type="cpc", **fields), Tiny(sequence=True)).double().eval()  # type: ignore[arg-type]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_views(seed: int = 0) -> list[Tensor]:
    return list(draw(seed, 2, N, SAMPLES))


# ---------------------------------------------------------------------------- the loss


def loss_oracle(predictions: Tensor, futures: Tensor) -> float:
    """Equation 4 of arXiv 1807.03748, term by term."""
    p, f = predictions.double().numpy(), futures.double().numpy()
    rows, pairs, steps, _ = p.shape
    total = 0.0
    for n in range(rows):
        for pair in range(pairs):
            for k in range(steps):
                scores = [math.exp(sum(p[n, pair, k] * f[m, pair, k])) for m in range(rows)]
                total -= math.log(scores[n] / sum(scores))
    return total / (rows * pairs * steps)


@given(seed=SEEDS, rows=st.integers(1, 6), pairs=st.integers(1, 3), steps=st.integers(1, 4))
def test_loss_equals_the_paper(seed, rows, pairs, steps):
    p, f = draw(seed, 2, rows, pairs, steps, 3)
    assert info_nce(p, f).item() == pytest.approx(loss_oracle(p, f), rel=1e-9, abs=1e-9)


@given(seed=SEEDS)
def test_loss_equals_the_paper_in_float32(seed):
    p, f = draw(seed, 2, 16, 2, 4, 8).float()
    loss = info_nce(p, f)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_oracle(p, f), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_futures_that_are_all_equal_give_the_log_of_their_number(rows):
    p, f = draw(0, rows, 2, 3, 4), draw(1, 1, 2, 3, 4).expand(rows, -1, -1, -1)
    assert info_nce(p, f).item() == pytest.approx(math.log(rows), abs=1e-12)


def test_dot_products_are_neither_normalised_nor_divided():
    p = torch.eye(4, dtype=torch.float64).view(4, 1, 1, 4)
    for scale in (0.5, 3.0):
        expected = math.log(math.exp(scale) + 3) - scale  # own dot product: scale; others: 0
        assert info_nce(scale * p, p).item() == pytest.approx(expected, rel=1e-12)


def test_negatives_are_of_the_same_pair_and_step():
    p, f = draw(0, 2, 5, 2, 3, 4)
    parts = [
        info_nce(p[:, i : i + 1, k : k + 1], f[:, i : i + 1, k : k + 1])
        for i in range(2)
        for k in range(3)
    ]
    torch.testing.assert_close(info_nce(p, f), torch.stack(parts).mean())


def test_scores_that_overflow_an_exponential_stay_finite():
    p = 1e3 * draw(0, 3, 1, 1, 4).float()
    p.requires_grad_()
    info_nce(p, p.detach()).backward()
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_gradient_of_the_loss():
    p, f = (x.requires_grad_() for x in draw(0, 2, 3, 2, 2, 3))
    assert torch.autograd.gradcheck(info_nce, (p, f))


# ---------------------------------------------------------------------------- the method


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def last_state(s: dict[str, np.ndarray], name: str, kind: str, frames: np.ndarray) -> np.ndarray:
    """The recurrence of torch's documentation for one utterance, (D, F) -> (H,)."""
    sequence = list(frames.T)
    layer = 0
    while f"{name}.weight_ih_l{layer}" in s:
        weights = [s[f"{name}.{w}_l{layer}"] for w in ("weight_ih", "weight_hh")]
        biases = [s[f"{name}.{b}_l{layer}"] for b in ("bias_ih", "bias_hh")]
        h = c = np.zeros(weights[1].shape[1])
        states = []
        for x in sequence:
            a, b = weights[0] @ x + biases[0], weights[1] @ h + biases[1]
            if kind == "gru":
                (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
                z = _sigmoid(az + bz)
                h = (1 - z) * np.tanh(an + _sigmoid(ar + br) * bn) + z * h
            else:
                i, f, g, o = np.split(a + b, 4)
                c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
                h = _sigmoid(o) * np.tanh(c)
            states.append(h)
        sequence, layer = states, layer + 1
    return sequence[-1]


def state_of(method: CPC) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in method.state_dict().items()}


def frames_of(method: CPC, wave: Tensor) -> np.ndarray:
    """Of one waveform by itself."""
    return method.encoder(wave[None]).detach().numpy()[0]  # (D, F)


def oracle(method: CPC, views: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and futures, utterance by utterance, (N, pairs, K, D)."""
    s, c = state_of(method), method.config
    pairs = [(0, 0), (1, 1)] if c.target == "same_view" else [(0, 1)]  # (context, future)
    predictions, futures = [], []
    for row in range(N):
        predictions.append([])
        futures.append([])
        for suffix in ("", "_r") if c.bidirectional else ("",):
            waves = [view[row].flip(0) if suffix else view[row] for view in views]
            frames = [frames_of(method, wave) for wave in waves]
            for context, future in pairs:
                past = frames[context][:, :-STEPS]
                state = last_state(s, f"aggregator{suffix}.aggregator", c.aggregator_type, past)
                heads = [f"predictor{suffix}.predictors.{k}" for k in range(STEPS)]
                predictions[-1].append(
                    [s[f"{head}.weight"] @ state + s[f"{head}.bias"] for head in heads]
                )
                futures[-1].append(frames[future][:, -STEPS:].T)
    return np.array(predictions), np.array(futures)


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_predictions_and_futures_are_those_of_each_utterance_by_itself(fields):
    method, views = make_method(**fields), make_views()
    outputs = method(views)
    predictions, futures = oracle(method, views)
    np.testing.assert_allclose(outputs["predictions"].detach(), predictions, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(outputs["futures"].detach(), futures, rtol=1e-9, atol=1e-12)

    loss, metrics = method.loss(outputs, None)  # type: ignore[arg-type]
    expected = loss_oracle(torch.from_numpy(predictions), torch.from_numpy(futures))
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert metrics.keys() == {"train/loss"}


def test_each_view_predicts_its_own_future_where_told_so():
    method, views = make_method(target="same_view"), make_views()
    before = method(views)
    after = method([views[0], draw(1, N, SAMPLES)])
    for name, x in before.items():
        assert torch.equal(after[name][:, 0], x[:, 0]), name
        assert not torch.isclose(after[name][:, 1], x[:, 1]).all(dim=-1).any(), name


def test_the_first_view_predicts_the_second():
    method, views = make_method(), make_views()
    before = method(views)
    after = method([views[0], draw(1, N, SAMPLES)])
    assert torch.equal(after["predictions"], before["predictions"])
    assert not torch.isclose(after["futures"], before["futures"]).all(dim=-1).any()


def test_the_context_does_not_see_what_it_predicts():
    """With an encoder that looks 80 samples ahead at most, the last frames' own samples."""
    method, views = make_method(target="same_view"), make_views()
    before = method(views)["predictions"]
    changed = [view.clone() for view in views]
    for view in changed:
        view[:, -(STEPS - 1) * 40 - 20 :] = 0  # a frame begins every 40 samples
    assert torch.equal(method(changed)["predictions"], before)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_embedding_is_the_context_of_all_frames(kind, bidirectional):
    method = make_method(aggregator_type=kind, bidirectional=bidirectional)
    wave, s = draw(0, N, SAMPLES), state_of(method)
    expected = []
    for row in wave:
        states = [last_state(s, "aggregator.aggregator", kind, frames_of(method, row))]
        if bidirectional:
            reverse = frames_of(method, row.flip(0))
            states.append(last_state(s, "aggregator_r.aggregator", kind, reverse))
        expected.append(np.concatenate(states))
    np.testing.assert_allclose(method.embed(wave).detach(), expected, rtol=1e-9, atol=1e-12)


@given(lengths=st.lists(st.integers(512, 4000), min_size=2, max_size=4), fill=st.floats(-9, 9))
@settings(max_examples=10)
def test_what_follows_the_end_of_a_row_does_not_matter_in_either_direction(lengths, fill):
    encoder = ResNet34(ResNet34Config(type="resnet34", base_dim=8, encoder_dim=6, pooling=False))
    config = CPCConfig(type="cpc", aggregator_dim=5, bidirectional=True)
    method = CPC(config, encoder).double().eval()
    wave = torch.full((len(lengths), max(lengths)), fill, dtype=torch.float64)
    alone = []
    for i, n in enumerate(lengths):
        wave[i, :n] = draw(i, n)
        alone.append(method.embed(wave[i : i + 1, :n]))
    torch.testing.assert_close(method.embed(wave, lengths), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_an_embedding_needs_no_more_than_one_frame():
    method = make_method()
    shortest = 20 * 2 + 40
    assert method.encoder(torch.zeros(1, shortest, dtype=torch.float64)).shape[-1] == 1
    assert method.embed(draw(0, 2, shortest)).shape == (2, 5)


def test_waveforms_that_cannot_be_embedded_are_refused():
    with pytest.raises(DataError, match=r"waveforms \[1\] .* not finite"):
        make_method().embed(torch.tensor([[0.0] * SAMPLES, [math.nan] * SAMPLES]).double())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_mixed_precision_stays_near_full_precision(kind):
    method, views = make_method(aggregator_type=kind).float(), [v.float() for v in make_views()]
    full = method.loss(method(views), None)[0]  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = {name: x.float() for name, x in method(views).items()}
    loss, _ = method.loss(outputs, None)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == pytest.approx(full.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


# ---------------------------------------------------------------------------- names and sizes


def test_parameter_count_of_the_published_table():
    encoder = ResNet34(ResNet34Config(type="resnet34", pooling=False))
    method = CPC(CPCConfig(type="cpc"), encoder)
    count = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert count == 1_682_582 + 3 * 256 * (512 + 256 + 2) + 4 * (256 + 1) * 512
    assert count == pytest.approx(2.80e6, abs=5e3)


def test_names_of_the_state_are_those_of_published_checkpoints():
    expected = set()
    for suffix in ("", "_r"):
        for weight in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            expected.add(f"aggregator{suffix}.aggregator.{weight}_l0")
        for k in range(STEPS):
            head = f"predictor{suffix}.predictors.{k}"
            expected |= {f"{head}.weight", f"{head}.bias"}
    state = make_method(bidirectional=True).state_dict()
    assert {name for name in state if not name.startswith("encoder.")} == expected
    assert state["aggregator.aggregator.weight_ih_l0"].shape == (15, 16)
    assert state["predictor.predictors.0.weight"].shape == (16, 5)
    one_way = make_method().state_dict()
    assert one_way.keys() == {name for name in state if "_r." not in name}


# ---------------------------------------------------------------------------- configuration


def test_defaults_are_those_of_the_reference():
    config = CPCConfig(type="cpc")
    assert (config.bidirectional, config.nb_t_to_predict) == (False, 4)
    assert (config.aggregator_type, config.aggregator_nb_layers) == ("gru", 1)
    assert config.aggregator_dim == 256


@pytest.mark.parametrize("field", ["nb_t_to_predict", "aggregator_nb_layers", "aggregator_dim"])
def test_fields_must_be_positive(field):
    with pytest.raises(ConfigError, match=f"{field}: must be positive, got 0"):
        CPCConfig(type="cpc", **{field: 0})


def experiment(**encoder: object) -> dict[str, object]:
    return {
        "encoder": {"type": "resnet34", "pooling": False} | encoder,
        "method": {"type": "cpc"},
        "trainer": {"batch_size": 2},
        "dataset": {"ssl": True},
    }


def test_a_batch_without_negatives_is_refused():
    config = from_dict(experiment())
    config.check()
    config.trainer.batch_size = 1
    with pytest.raises(ConfigError, match=r"trainer\.batch_size: 1 leaves cpc no negatives"):
        config.check()


def test_an_encoder_that_pools_is_refused():
    with pytest.raises(ConfigError, match=r"method\.type: 'cpc' needs a sequence .*pooling: false"):
        from_dict(experiment(pooling=True)).check()


@pytest.mark.parametrize(("frames", "works"), [(STEPS, False), (STEPS + 1, True)])
def test_views_that_are_too_short_are_refused(frames, works):
    method, samples = make_method(), 40 + 20 * 2 * frames
    views = [draw(0, N, samples)] * 2
    if works:
        assert method(views)["predictions"].isfinite().all()
        return
    message = f"makes 3 frames of the {samples} samples of .*nb_t_to_predict 3 needs at least 4,"
    with pytest.raises(DataError, match=message):
        method(views)
