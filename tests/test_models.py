"""The configurations below models/: what they say, whether their names are true, that they run."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sslsv.config import from_dict, load_config, to_dict
from sslsv.experiment import build_method, evaluate, train
from sslsv.files import read_json

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
FAMILIES = "ssl ssps margins supervised label_efficient foundation".split()
PLAIN = ("demo", "small")  # families in which a folder has the name of its method and no more
CONFIGS = sorted(
    (path.parent.relative_to(MODELS).as_posix() for path in MODELS.rglob("config.yml")),
    key=lambda name: ([*FAMILIES, *PLAIN].index(name.split("/")[0]), name),
)
SSL, SSPS = "ssl/voxceleb2", "ssps/voxceleb2"


@functools.cache
def load(name: str) -> Any:
    return load_config(MODELS / name)


# ------------------------------------------------------------------------- rows of the results


@dataclass(frozen=True)
class Row:
    """What stands behind a row of the results tables; by default what most have in common."""

    encoder: str = "resnet34"
    mels: int = 40
    epochs: int = 100
    batch: int = 256
    optimizer: str = "adam"
    lr: float = 0.001
    decay: float = 0.0
    method: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)  # other keys, such as "dataset.ssl"


WIDE = {"encoder.channels": [1024, 1024, 1024, 1024, 3072]}
LARGE = {"encoder": "ecapatdnn", "more": WIDE}
PROJECTOR = {
    "enable_projector": True,
    "projector_hidden_dim": 2048,
    "projector_output_dim": 512,
    "projector_layers": 3,
}
SIMCLR = {"type": "simclr", "enable_projector": False, "temperature": 0.03}
MOCO = {
    "type": "moco",
    "enable_projector": False,
    "temperature": 0.03,
    "queue_size": 32768,
    "start_tau": 0.999,
    "tau_scheduler": False,
}
SWAV = {
    "type": "swav",
    **PROJECTOR,
    "nb_prototypes": 6000,
    "temperature": 0.1,
    "sk_nb_iters": 3,
    "sk_epsilon": 0.05,
    "queue_size": 3840,
    "queue_start_epoch": 15,
    "freeze_prototypes_epochs": 1,
}
VICREG = {"type": "vicreg", **PROJECTOR, "inv_weight": 1.0, "var_weight": 1.0, "cov_weight": 0.1}
SUPERVISED = {
    "type": "supervised",
    "nb_classes": 5994,
    "classifier": "speaker",
    "freeze_encoder": False,
    "aam_scale": 30.0,
    "aam_margin": 0.2,
}
DINO = {
    "type": "dino",
    "global_count": 2,
    "local_count": 4,
    "start_tau": 0.996,
    "end_tau": 1.0,
    "tau_scheduler": True,
    "enable_projector": True,
    "head_hidden_dim": 2048,
    "head_bottleneck_dim": 256,
    "head_output_dim": 65536,
    "freeze_last_layer": 1,
    "clip_grad": 3.0,
    "student_temperature": 0.1,
    "teacher_temperature": 0.04,
    "teacher_temperature_warmup": 0.04,
    "teacher_temperature_warmup_epochs": 10,
}
CROPS = {
    "dataset.frame_sampling": "dino",
    "dataset.ssl_dino_global_count": 2,
    "dataset.ssl_dino_global_length": 64000,
    "dataset.ssl_dino_local_count": 4,
    "dataset.ssl_dino_local_length": 32000,
    "dataset.frame_length": 64000,
    "dataset.augmentation.strategy": "all",
}
UNSYNCHRONISED = {"trainer.ddp_sync_batchnorm": False}
LABELLED = {"dataset.ssl": False}
SLOW: dict[str, Any] = {"mels": 80, "batch": 128, "optimizer": "sgd", "lr": 0.2, "decay": 5e-5}
PSEUDO_POSITIVES = {
    "sampling": "kmeans-repr",
    "kmeans_nb_prototypes": 25000,
    "kmeans_nb_iters": 10,
    "inter_sampling_size": 1,
    "inter_sampling_prob_fn": "uniform",
    "pos_queue_size": 25000,
}
AVERAGE = "proj-2048-BN-R-2048-BN-R-512"  # the usual projector in the name of a folder
DINO_NAME = "proj-2048-BN-G-2048-BN-G-256-L2-65536_G-2x4_L-4x2_t-0.04"

ROWS = {
    # Fast ResNet-34
    f"{SSL}/lim/lim_loss-NCE_{AVERAGE}": Row(method={"type": "lim", "loss": "nce", **PROJECTOR}),
    f"{SSL}/cpc/cpc_t-4_agg-GRU-1-256": Row(
        method={
            "type": "cpc",
            "bidirectional": False,
            "nb_t_to_predict": 4,
            "aggregator_type": "gru",
            "aggregator_nb_layers": 1,
            "aggregator_dim": 256,
        },
        more={"encoder.pooling": False},
    ),
    f"{SSL}/simclr/simclr_proj-none_t-0.03": Row(method=SIMCLR),
    f"{SSL}/moco/moco_proj-none_Q-32768_t-0.03_m-0.999": Row(method=MOCO, more=UNSYNCHRONISED),
    f"{SSL}/deepcluster/deepcluster_{AVERAGE}_K-3000-3000-3000_t-0.1": Row(
        method={
            "type": "deepcluster",
            **PROJECTOR,
            "nb_prototypes": [3000, 3000, 3000],
            "kmeans_nb_iters": 10,
            "temperature": 0.1,
        }
    ),
    f"{SSL}/swav/swav_{AVERAGE}_K-6000_t-0.1": Row(method=SWAV),
    f"{SSL}/wmse/wmse_proj-1024-BN-R-64_ws-128": Row(
        method={
            "type": "wmse",
            "projector_hidden_dim": 1024,
            "projector_output_dim": 64,
            "projector_layers": 2,
            "whitening_size": 128,
            "whitening_iters": 1,
            "whitening_eps": 0.0,
        }
    ),
    f"{SSL}/barlowtwins/barlowtwins_{AVERAGE}_lambda-0.005": Row(
        method={"type": "barlow_twins", **PROJECTOR, "lamda": 0.005}
    ),
    f"{SSL}/vicreg/vicreg_{AVERAGE}_inv-1.0_var-1.0_cov-0.1": Row(method=VICREG),
    f"{SSL}/byol/byol_{AVERAGE}_pred-4096-BN-R-256_m-0.996-sched": Row(
        method={
            "type": "byol",
            **PROJECTOR,
            "predictor_hidden_dim": 4096,
            "start_tau": 0.996,
            "end_tau": 1.0,
            "tau_scheduler": True,
        }
    ),
    f"{SSL}/simsiam/simsiam_{AVERAGE}-BN_pred-512-BN-R-2048": Row(
        method={"type": "simsiam", **PROJECTOR, "pred_hidden_dim": 512}
    ),
    f"{SSL}/dino/dino_{DINO_NAME}": Row(
        epochs=80, method=DINO, more=CROPS | {"encoder.pooling_mode": "stats"}, **SLOW
    ),
    f"{SSL}/supervised/supervised_loss-AAM_s-30_m-0.2": Row(method=SUPERVISED, more=LABELLED),
    # ECAPA-TDNN
    f"{SSL}/simclr/simclr_enc-ECAPATDNN-1024_proj-none_t-0.03": Row(method=SIMCLR, **LARGE),
    f"{SSL}/moco/moco_enc-ECAPATDNN-1024_proj-none_Q-32768_t-0.03_m-0.999": Row(
        "ecapatdnn", method=MOCO, more=WIDE | UNSYNCHRONISED
    ),
    f"{SSL}/swav/swav_enc-ECAPATDNN-1024_{AVERAGE}_K-6000_t-0.1": Row(method=SWAV, **LARGE),
    f"{SSL}/vicreg/vicreg_enc-ECAPATDNN-1024_{AVERAGE}_inv-1.0_var-1.0_cov-0.1": Row(
        method=VICREG, **LARGE
    ),
    f"{SSL}/dino/dino_enc-ECAPATDNN-1024_{DINO_NAME}": Row(
        "ecapatdnn", epochs=80, method=DINO, more=CROPS | WIDE, **SLOW
    ),
    f"{SSL}/supervised/supervised_enc-ECAPATDNN-1024_loss-AAM_s-30_m-0.2": Row(
        "ecapatdnn", method=SUPERVISED, more=WIDE | LABELLED
    ),
    # SSPS, and what it goes on from
    f"{SSPS}/simclr_e-ecapa/_simclr": Row(method={**SIMCLR, "ssps": None}, **LARGE),
    f"{SSPS}/simclr_e-ecapa/ssps_kmeans_25k_uni-1": Row(
        "ecapatdnn",
        epochs=120,
        method={**SIMCLR, "ssps": PSEUDO_POSITIVES | {"start_epoch": 100}},
        more=WIDE | {"dataset.ssps": True},
    ),
    f"{SSPS}/dino_e-ecapa/_dino": Row(
        "ecapatdnn",
        epochs=80,
        method={**DINO, "ssps": None},
        more=CROPS | WIDE | {"encoder.mel_win_fn": "hann", "dataset.num_workers": 6},
        **SLOW,
    ),
    f"{SSPS}/dino_e-ecapa/ssps_kmeans_25k_uni-1": Row(
        "ecapatdnn",
        epochs=100,
        method={**DINO, "ssps": PSEUDO_POSITIVES | {"start_epoch": 80}},
        more=CROPS
        | WIDE
        | {"encoder.mel_win_fn": "hann", "dataset.num_workers": 6, "dataset.ssps": True},
        **SLOW,
    ),
}
# Of all rows, unless they say otherwise.
COMMON = {
    "seed": 1717,
    "encoder.encoder_dim": 512,
    "encoder.mel_win_fn": "hamming",
    "trainer.learning_rate_sched": "default",
    "trainer.ddp_sync_batchnorm": True,
    "trainer.mixed_precision": False,
    "trainer.stop_at_epoch": None,
    "trainer.tracked_metric": "val/sv_cosine/voxceleb1_test_O/eer",
    "dataset.base_path": "data",
    "dataset.train": "voxceleb2_train.csv",
    "dataset.ssl": True,
    "dataset.ssps": False,
    "dataset.frame_sampling": "default",
    "dataset.frame_length": 32000,
    "dataset.num_workers": 8,
    "dataset.sampler": None,
    "dataset.augmentation.enable": True,
    "dataset.augmentation.aug_prob": 1.0,
    "dataset.augmentation.strategy": "reverb+noise",
}
# Trainable parameters in millions, and the last digit that is known.
PARAMETERS = {
    f"{SSL}/simclr/simclr_proj-none_t-0.03": (1.44, 0.01),
    f"{SSL}/moco/moco_proj-none_Q-32768_t-0.03_m-0.999": (1.44, 0.01),
    f"{SSL}/lim/lim_loss-NCE_{AVERAGE}": (7.74, 0.01),
    f"{SSL}/deepcluster/deepcluster_{AVERAGE}_K-3000-3000-3000_t-0.1": (7.74, 0.01),
    f"{SSL}/barlowtwins/barlowtwins_{AVERAGE}_lambda-0.005": (7.74, 0.01),
    f"{SSL}/vicreg/vicreg_{AVERAGE}_inv-1.0_var-1.0_cov-0.1": (7.74, 0.01),
    f"{SSL}/cpc/cpc_t-4_agg-GRU-1-256": (2.80, 0.01),
    f"{SSL}/swav/swav_{AVERAGE}_K-6000_t-0.1": (10.81, 0.01),
    f"{SSL}/wmse/wmse_proj-1024-BN-R-64_ws-128": (2.03, 0.01),
    f"{SSL}/byol/byol_{AVERAGE}_pred-4096-BN-R-256_m-0.996-sched": (11.95, 0.01),
    f"{SSL}/simsiam/simsiam_{AVERAGE}-BN_pred-512-BN-R-2048": (8.26, 0.01),
    f"{SSL}/dino/dino_{DINO_NAME}": (25.2, 0.1),
    f"{SSL}/dino/dino_enc-ECAPATDNN-1024_{DINO_NAME}": (45.3, 0.1),
    f"{SSL}/supervised/supervised_loss-AAM_s-30_m-0.2": (4.51, 0.01),
    f"{SSL}/supervised/supervised_enc-ECAPATDNN-1024_loss-AAM_s-30_m-0.2": (25.6, 0.1),
}


def value_of(config: Any, key: str) -> Any:
    node: Any = to_dict(config)
    for part in key.split("."):
        node = node[part]
    return node


class TestRows:
    def test_there_are_19_and_2_of_ssps_with_what_they_go_on_from(self) -> None:
        assert len([name for name in ROWS if name.startswith(SSL)]) == 13 + 6
        assert len([name for name in ROWS if name.startswith(SSPS)]) == 2 + 2
        assert {name for name in CONFIGS if name.startswith((SSL, SSPS))} == set(ROWS)

    @pytest.mark.parametrize("name", ROWS)
    def test_has_the_published_settings(self, name: str) -> None:
        row, config = ROWS[name], load(name)
        expected = COMMON | {
            "encoder.type": row.encoder,
            "encoder.mel_n_mels": row.mels,
            "trainer.epochs": row.epochs,
            "trainer.batch_size": row.batch,
            "trainer.optimizer": row.optimizer,
            "trainer.learning_rate": row.lr,
            "trainer.weight_decay": row.decay,
        }
        expected |= row.more
        assert {key: value_of(config, key) for key in expected} == expected
        method = to_dict(config)["method"]
        ssps, wanted = method.pop("ssps"), dict(row.method)
        wanted_ssps = wanted.pop("ssps", None)
        assert {key: method[key] for key in wanted} == wanted
        assert (ssps and {key: ssps[key] for key in wanted_ssps}) == wanted_ssps

    @pytest.mark.parametrize("name", ROWS)
    def test_is_validated_and_tested_as_published(self, name: str) -> None:
        evaluation = to_dict(load(name))["evaluation"]
        (validation,), (test,) = evaluation["validation"], evaluation["test"]
        keys = ("type", "num_frames", "frame_length", "trials")
        assert [validation[key] for key in keys] == ["sv_cosine", 10, 64000, ["voxceleb1_test_O"]]
        lists = [f"voxceleb1_test_{letter}" for letter in "OHE"]
        assert [test[key] for key in keys] == ["sv_cosine", 1, None, lists]

    @pytest.mark.parametrize("kind", ["simclr", "dino"])
    def test_of_ssps_goes_on_where_its_base_run_ends(self, kind: str) -> None:
        names = (f"_{kind}", "ssps_kmeans_25k_uni-1")
        base, config = (load(f"{SSPS}/{kind}_e-ecapa/{name}") for name in names)
        folder = f"models/{SSPS}/{kind}_e-ecapa/_{kind}"
        assert config.trainer.last_checkpoint == Path(folder, "checkpoints/model_latest.pt")
        assert config.method.ssps.start_epoch == base.trainer.epochs < config.trainer.epochs

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_has_the_published_number_of_trainable_parameters(self, name: str) -> None:
        """All agree to the digits that are known."""
        millions, digit = PARAMETERS[name]
        method = build_method(load(name))
        count = sum(p.numel() for p in method.parameters() if p.requires_grad)
        assert count / 1e6 == pytest.approx(millions, abs=digit / 2)


# ------------------------------------------------------------------------------- names of folders

# The names say what the predictor gives in the papers' sizes; it gives what the projector does.
PREDICTED = {"byol": 256, "simsiam": 2048}


def projector(config: Any) -> str:
    m = config.method
    if m.type == "dino":
        hidden = f"{m.head_hidden_dim}-BN-G-" * 2
        return f"proj-{hidden}{m.head_bottleneck_dim}-L2-{m.head_output_dim}"
    if not m.enable_projector:
        return "proj-none"
    hidden = f"{m.projector_hidden_dim}-BN-R-" * (m.projector_layers - 1)
    return f"proj-{hidden}{m.projector_output_dim}{'-BN' if m.type == 'simsiam' else ''}"


def loss(config: Any) -> str:
    m = config.method
    if m.type == "supervised":
        return "loss-" + {"speaker": "AAM", "linear": "CE"}[m.classifier]
    if m.type == "lim":
        return f"loss-{m.loss.upper()}"
    return f"loss-{m.loss.loss.removeprefix('nt-xent-')}"


def temperature(config: Any) -> str:
    m = config.method
    if m.type == "cpc":
        return f"t-{m.nb_t_to_predict}"
    if m.type == "dino":
        return f"t-{m.teacher_temperature:g}"
    if m.type.endswith("_margins"):
        return f"t-{1 / m.loss.scale:.3g}"
    return f"t-{m.temperature:g}"


def momentum(config: Any) -> str:
    m = config.method
    if m.type == "supervised":
        return f"m-{m.aam_margin:g}"
    return f"m-{m.start_tau:g}{'-sched' if m.tau_scheduler else ''}"


def prototypes(config: Any) -> str:
    counts = config.method.nb_prototypes
    return "K-" + "-".join(map(str, counts if isinstance(counts, list) else [counts]))


def predictor(config: Any) -> str:
    m = config.method
    hidden = m.predictor_hidden_dim if m.type == "byol" else m.pred_hidden_dim
    return f"pred-{hidden}-BN-R-{PREDICTED[m.type]}"


def margin(config: Any) -> str:
    loss = config.method.loss
    if loss.loss == "nt-xent-magface":
        return f"margin-{loss.magface_l_margin:g}-{loss.magface_u_margin:g}"
    return f"margin-{loss.margin:g}"


def crops(config: Any, kind: str) -> str:
    count = getattr(config.dataset, f"ssl_dino_{kind}_count")
    assert config.dataset.frame_sampling == "dino"
    assert getattr(config.method, f"{kind}_count") == count
    seconds = getattr(config.dataset, f"ssl_dino_{kind}_length") / 16000
    return f"{kind[0].upper()}-{count}x{seconds:g}"


def short(config: Any) -> str:
    return config.method.type.removesuffix("_margins").replace("_", "")


def start(config: Any) -> str:
    """Method of the run that the weights come from."""
    return f"init-{short(load_config(ROOT / config.trainer.init_weights.parents[1]))}"


def pretrained(config: Any) -> str:
    return config.encoder.model.rpartition("/")[2] if config.encoder.type == "huggingface" else ""


def frozen(config: Any) -> str:
    """Whether all of a pretrained encoder, or of one that was trained earlier, stays as it is."""
    if config.encoder.type == "huggingface":
        return "frozen" if config.encoder.frozen else "finetuned"
    return "frozen" if config.method.freeze_encoder else "finetuned"


def corpus_of(config: Any) -> str:
    return config.dataset.train.partition("_train")[0]


def sampling(config: Any) -> str:
    return config.method.ssps.sampling.removesuffix("-repr")


def label(config: Any) -> str:
    return config.dataset.label_key.lower()


METHODS = "lim cpc simclr moco deepcluster swav wmse barlowtwins vicreg byol simsiam dino".split()
# What a part of a name begins with -> that part, made of a configuration.
WORDS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys((*METHODS, "supervised"), short),
    **dict.fromkeys(("voxceleb2", "voxlingua107", "cremad"), corpus_of),
    **dict.fromkeys(("emotion", "language", "speaker"), label),
    **dict.fromkeys(("frozen", "finetuned"), frozen),
    "enc": lambda c: f"enc-{c.encoder.type.upper()}-{c.encoder.channels[0]}",
    "e": lambda c: f"e-{c.encoder.type.removesuffix('tdnn')}",
    "wavlm": pretrained,
    "mhfa": lambda c: c.encoder.pooling,
    "loss": loss,
    "proj": projector,
    "pred": predictor,
    "agg": lambda c: (
        f"agg-{c.method.aggregator_type.upper()}-{c.method.aggregator_nb_layers}-"
        f"{c.method.aggregator_dim}"
    ),
    "t": temperature,
    "m": momentum,
    "margin": margin,
    "s": lambda c: f"s-{c.method.aam_scale:g}",
    "Q": lambda c: f"Q-{c.method.queue_size}",
    "K": prototypes,
    "ws": lambda c: f"ws-{c.method.whitening_size}",
    "lambda": lambda c: f"lambda-{c.method.lamda:g}",
    "inv": lambda c: f"inv-{c.method.inv_weight}",
    "var": lambda c: f"var-{c.method.var_weight}",
    "cov": lambda c: f"cov-{c.method.cov_weight}",
    "G": lambda c: crops(c, "global"),
    "L": lambda c: crops(c, "local"),
    "ssps": lambda c: "ssps" if c.method.ssps and c.dataset.ssps else "",
    "kmeans": sampling,
    "25k": lambda c: f"{c.method.ssps.kmeans_nb_prototypes // 1000}k",
    "uni": lambda c: (
        f"uni-{c.method.ssps.inter_sampling_size}"
        if c.method.ssps.inter_sampling_prob_fn == "uniform"
        else ""
    ),
    "pseudo": lambda c: f"{c.dataset.label_key.lower()}-{c.method.nb_classes}",
    "init": start,
}


def words(name: str) -> list[str]:
    """Parts of the name of a folder and of those above it, without the family's."""
    return [word for part in name.split("/")[1:] for word in part.split("_") if word]


SPOKEN = [name for name in CONFIGS if not name.startswith(PLAIN)]


class TestNames:
    @pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith(PLAIN)])
    def test_a_plain_folder_is_called_as_its_method(self, name: str) -> None:
        method = load(name).method
        assert name.split("/")[1:] == [method.type + ("_ssps" if method.ssps else "")]

    @pytest.mark.parametrize("name", SPOKEN)
    def test_every_word_of_a_folder_is_what_its_configuration_says(self, name: str) -> None:
        config, found = load(name), words(name)
        assert [WORDS[word.partition("-")[0]](config) for word in found] == found

    @pytest.mark.parametrize("name", [n for n in CONFIGS if n.split("/")[0] in FAMILIES[:3]])
    def test_an_encoder_that_is_not_named_is_the_resnet(self, name: str) -> None:
        named = any(word.startswith(("enc-", "e-")) for word in words(name))
        assert load(name).encoder.type == ("ecapatdnn" if named else "resnet34")

    def test_a_word_that_is_not_so_is_noticed(self) -> None:
        """Of the check itself: each number in each name, changed by one, does not fit any more."""
        tried = 0
        for name in SPOKEN:
            config = load(name)
            for word in words(name):
                for number in re.finditer(r"(?<=[-x])\d+(?:\.\d+)?", word):
                    if word.startswith("pred-") and number.end() == len(word):
                        continue  # not what the predictor gives
                    other = f"{float(number[0]) + 1:g}"
                    changed = word[: number.start()] + other + word[number.end() :]
                    assert WORDS[word.partition("-")[0]](config) != changed
                    tried += 1
        assert tried > 100


# ------------------------------------------------------------------------------------- all of them


class TestEveryFile:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_loads_and_keeps_its_results_in_its_own_folder(self, name: str) -> None:
        config = load(name)
        assert config.run_dir == MODELS / name
        assert config.evaluation.test

    def test_is_a_config_or_what_one_builds_on(self) -> None:
        shared = {path.resolve() for path in MODELS.rglob("_*.yml")}
        used = set()
        for path in [*MODELS.rglob("config.yml"), *shared]:
            base = YAML(typ="safe", pure=True).load(path.read_text()).get("base")
            used |= {(path.parent / base).resolve()} if base else set()
        assert shared <= used

    def test_means_something_that_no_other_one_does(self) -> None:
        """But for the base run of SimCLR with SSPS, which is a row of the table in another
        place."""
        meanings: dict[str, list[str]] = {}
        for name in CONFIGS:
            settings = to_dict(load(name)) | {"run_dir": None}
            meanings.setdefault(json.dumps(settings), []).append(name)
        assert [names for names in meanings.values() if len(names) > 1] == [
            [
                f"{SSL}/simclr/simclr_enc-ECAPATDNN-1024_proj-none_t-0.03",
                f"{SSPS}/simclr_e-ecapa/_simclr",
            ]
        ]

    @pytest.mark.parametrize("name", CONFIGS)
    def test_starts_from_checkpoints_of_runs_that_are_here_too(self, name: str) -> None:
        trainer = load(name).trainer
        for path in filter(None, (trainer.init_weights, trainer.last_checkpoint)):
            assert path.parts[0] == "models"
            assert (ROOT / path.parents[1] / "config.yml").exists()


# ------------------------------------------------------------------------------------------- runs

SPEAKERS, WIDTH, ROWS_OF_A_BATCH = 8, 16, 8
# Fields of any method, made small; a list keeps its length.
SMALL: dict[str, Any] = {
    "projector_hidden_dim": WIDTH,
    "projector_output_dim": 4,
    "predictor_hidden_dim": WIDTH,
    "pred_hidden_dim": WIDTH,
    "aggregator_dim": WIDTH,
    "head_hidden_dim": WIDTH,
    "head_bottleneck_dim": 8,
    "head_output_dim": 32,
    "queue_size": 2 * ROWS_OF_A_BATCH,
    "nb_prototypes": 4,
    "whitening_size": ROWS_OF_A_BATCH,
    "nb_classes": SPEAKERS,
}
SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "resnet34": {"base_dim": 8},
    "ecapatdnn": {"channels": [16, 16, 16, 16, 24], "attention_channels": 8, "se_channels": 8},
    "huggingface": {},
}
SMALL_CROPS = {
    "frame_length": 8000,
    "ssl_dino_global_length": 12000,
    "ssl_dino_local_length": 8000,
    "ssps_frame_length": 12000,
}


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus under the names of all lists that configurations name: each speaker is
    heard in the first eight rows, and where a list has parts the last utterances are the test."""
    folder = tmp_path_factory.mktemp("zoo") / "data"
    shutil.copytree(corpus, folder)
    files = [line.split(",") for line in (corpus / "train.csv").read_text().split()[1:]]
    utterances = len(files) // SPEAKERS
    files = [files[s * utterances + u] for u in range(utterances) for s in range(SPEAKERS)]
    parts = ["train"] * (len(files) - SPEAKERS) + ["test"] * SPEAKERS
    for config in map(load, CONFIGS):
        tasks = config.evaluation.validation + config.evaluation.test
        divided = any(task.type == "classification" for task in tasks)
        rows = [f"File,{config.dataset.label_key}" + (",Set" if divided else "")]
        for (file, speaker), part in zip(files, parts, strict=True):
            rows.append(f"{file},{speaker}" + (f",{part}" if divided else ""))
        (folder / config.dataset.train).write_text("\n".join(rows) + "\n")
        for name in {name for task in tasks for name in getattr(task, "trials", [])}:
            shutil.copy(folder / "trials", folder / name)
    return folder


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WavLM of random weights, as transformers saves it, in place of the real one."""
    transformers = pytest.importorskip("transformers", reason="the extra 'foundation' is missing")
    folder = tmp_path_factory.mktemp("wavlm")
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 12, "conv_dim": (8, 8), "num_feat_extract_layers": 2}
    sizes |= {"conv_kernel": (10, 8), "conv_stride": (5, 8)}
    sizes |= {"num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2}
    transformers.WavLMModel(transformers.WavLMConfig(**sizes)).save_pretrained(folder)
    return folder


def resized(fields: dict[str, Any]) -> dict[str, Any]:
    """A method's section with its sizes from SMALL."""
    small = {key: SMALL[key] for key in fields if key in SMALL}
    if fields["type"] == "vibcreg":
        small["projector_output_dim"] = 64  # it whitens 64 groups
    for key in [key for key in small if isinstance(fields[key], list)]:
        small[key] = [small[key]] * len(fields[key])
    return fields | small


@dataclass(frozen=True)
class Runner:
    """Trains and tests configurations in a small form: one step, all lists."""

    data: Path
    folder: Path
    wavlm: Callable[[], Path]

    def small(self, name: str) -> Any:
        """The configuration, and those of the runs it starts from are trained first."""
        raw = to_dict(load(name))
        raw["run_dir"] = str(self.folder / name)
        raw["method"] = resized(raw["method"])
        raw["encoder"] |= SMALL_ENCODERS[raw["encoder"]["type"]] | {"encoder_dim": WIDTH}
        if raw["encoder"]["type"] == "huggingface":
            raw["encoder"]["model"] = str(self.wavlm())
        raw["trainer"] |= {"epochs": 1, "batch_size": ROWS_OF_A_BATCH, "keep_last_n": 1}
        raw["trainer"]["avg_count"] = min(1, raw["trainer"]["avg_count"])
        raw["dataset"] |= SMALL_CROPS | {"base_path": str(self.data), "num_workers": 0}
        raw["dataset"] |= {"max_samples": ROWS_OF_A_BATCH}
        raw["evaluation"] |= {"resamples": 0, "cache_gb": 0}
        for task in raw["evaluation"]["validation"]:
            task |= {"num_frames": 2, "frame_length": 8000}
        if raw["method"]["ssps"]:
            sizes = {"start_epoch": 1, "kmeans_nb_prototypes": 4, "pos_queue_size": 8}
            raw["method"]["ssps"] |= sizes
            raw["trainer"]["epochs"] = 2
        for key in ("init_weights", "last_checkpoint"):
            if raw["trainer"][key]:
                path = Path(raw["trainer"][key])
                earlier = path.parents[1].relative_to("models").as_posix()
                train(self.small(earlier))
                raw["trainer"][key] = str(self.folder / earlier / "checkpoints" / path.name)
        config = from_dict(raw)
        config.check()
        return config

    def run(self, name: str) -> None:
        config = self.small(name)
        train(config)
        history = read_json(config.run_dir / "training.json")
        assert list(history) == [str(config.trainer.epochs)]
        assert all(math.isfinite(epoch["train/loss"]) for epoch in history.values())
        if config.evaluation.validation:
            assert config.trainer.tracked_metric in history[str(config.trainer.epochs)]
        found = evaluate(config, "avg" if config.trainer.avg_count else "latest")["trained"]
        expected = {metric for task in config.evaluation.test for metric in task.metric_names()}
        if config.method.type == "supervised":  # which tests by its head
            expected = {metric for metric in expected if not metric.startswith(("linear/", "knn/"))}
        assert expected <= set(found)
        assert all(math.isfinite(found[metric]) for metric in expected)


@pytest.fixture
def runner(data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Runner:
    return Runner(data, tmp_path, lambda: request.getfixturevalue("wavlm"))


def one_of_each() -> list[str]:
    """The first configuration of each method, with and without SSPS, and of each encoder."""
    chosen: dict[tuple[str, ...], str] = {}
    for name in CONFIGS:
        config = load(name)
        ssps = ("ssps",) if config.method.ssps else ()
        chosen.setdefault(("method", config.method.type, *ssps), name)
        chosen.setdefault(("encoder", config.encoder.type), name)
    return sorted(set(chosen.values()))


@pytest.mark.parametrize("name", one_of_each())
def test_one_configuration_of_each_method_trains_and_is_tested(name: str, runner: Runner) -> None:
    runner.run(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_trains_and_is_tested(name: str, runner: Runner) -> None:
    """Less than a minute on an idle core."""
    runner.run(name)
