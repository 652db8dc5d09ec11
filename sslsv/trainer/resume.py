"""From a checkpoint to a trainer that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sslsv import distributed
from sslsv.errors import CheckpointError
from sslsv.methods.base import Method
from sslsv.registry import METHODS
from sslsv.trainer import checkpoint, reference
from sslsv.trainer.means import EpochMeans
from sslsv.trainer.tracking import say

if TYPE_CHECKING:
    from sslsv.trainer.trainer import Trainer

# Keys that a resumed run may change: they alter where or how fast it runs, or how long.
_FREE_KEYS = {f"dataset.{k}" for k in ("num_workers", "pin_memory", "base_path", "on_error")}
_FIXED_SECTIONS = ("encoder.", "method.", "dataset.", "seed")
_FIXED_KEYS = {
    f"trainer.{k}" for k in ("optimizer", "batch_size", "accumulation", "weight_decay_all")
}


def resume(trainer: Trainer) -> None:
    """Go on from the run's latest checkpoint, else start as the configuration says."""
    config, run_dir = trainer.config, trainer.run_dir
    if found := checkpoint.load_latest(run_dir, trainer.device):
        state, path = found
        if reference.made(state):
            _go_on_from(trainer, state, path)
            return
        _refuse_changed_settings(json.loads(state["config"]), trainer.settings, path)
        load_state(trainer, state, path)
        within = f" and {trainer.means.steps} steps" if trainer.means.steps else ""
        say(f"{run_dir}: going on after epoch {trainer.epoch}{within} of {config.epochs}")
    elif config.last_checkpoint:
        path = config.last_checkpoint
        _go_on_from(trainer, checkpoint.load(path, trainer.device), path)
    elif config.init_weights:
        path = config.init_weights
        state, taken = _as_evaluated(trainer.method, checkpoint.load(path, trainer.device))
        remarks = checkpoint.load_encoder(trainer.method, state, path)
        say("; ".join([f"{run_dir}: weights from {path}", *taken, *remarks]))


def _as_evaluated(method: Method, state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``state`` with the encoder that its method is evaluated by, and a remark if that is another
    one than the encoder that it trains. A method with a teacher of its own gets both as they are.
    """
    kind = json.loads(state.get("config") or "{}").get("method", {}).get("type")
    if kind not in METHODS.names():
        return state, []
    name = METHODS.get(kind).cls.embeds_with  # type: ignore[attr-defined]
    if any(key.startswith(f"{name}.") for key in method.state_dict()):
        return state, []
    weights = {k: x for k, x in state["model"].items() if not k.startswith("encoder.")}
    teacher = {k: weights.pop(k) for k in list(weights) if k.startswith(f"{name}.")}
    weights |= {f"encoder{k.removeprefix(name)}": x for k, x in teacher.items()}
    return state | {"model": weights}, [f"the encoder is {name}, by which {kind} is evaluated"]


def state_of(trainer: Trainer) -> dict[str, Any]:
    """All that a later process needs to go on as if nothing had happened. Every process takes
    part, and gets the same."""
    return {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "best_metric": trainer.best_metric,
        "stale_epochs": trainer.stale_epochs,
        "model": trainer.method.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "optimizer_type": trainer.config.optimizer,
        "scaler": trainer.scaler.state_dict(),
        "average": trainer.average.state_dict(),
        "memories": trainer.memories,
        "processes": distributed.gather_objects(_own_state(trainer)),
        "config": json.dumps(trainer.settings),
    }


def _own_state(trainer: Trainer) -> dict[str, Any]:
    """Of this process: random numbers, means, and statistics that are made equal later."""
    state: dict[str, Any] = {"rng": torch.get_rng_state(), "means": trainer.means.state_dict()}
    state["skipped"] = trainer.skipped.state_dict()
    if trainer.device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(trainer.device)
    if distributed.world_size() > 1:
        state["statistics"] = [x.cpu() for x in trainer.statistics()]
    return state


def load_state(trainer: Trainer, state: dict[str, Any], source: Path) -> None:
    """Take over ``state``; CheckpointError where it is not of a training of this kind."""
    _refuse_other_labels(json.loads(state["config"]), trainer.settings, source)
    checkpoint.load_weights(trainer.method, state, source)
    try:
        if state["optimizer_type"] != trainer.config.optimizer:
            raise ValueError(f"its trainer.optimizer is {state['optimizer_type']}")
        _load_optimizer(trainer, state["optimizer"])
        trainer.epoch, trainer.step = state["epoch"], state["step"]
        trainer.best_metric = state["best_metric"]
        trainer.stale_epochs = state["stale_epochs"]
        if state["scaler"] and trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(state["scaler"])
        trainer.average.load_state_dict(state["average"])
        _load_own_state(trainer, state["processes"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{source}: holds weights but not the state of a training of this kind ({error}); "
            "give it as trainer.init_weights to start from its weights"
        ) from None
    checkpoint.load_memories(trainer.memories, state["memories"], source)


def _load_own_state(trainer: Trainer, processes: list[dict[str, Any]]) -> None:
    same = len(processes) == distributed.world_size()
    own = processes[distributed.rank() if same else 0]
    means = own["means"] if same else EpochMeans.mean([its["means"] for its in processes])
    trainer.means.load_state_dict(means, trainer.device)
    for its in [own] if same else processes if distributed.is_main() else []:
        trainer.skipped.load_state_dict(its["skipped"])
    if not same:
        say(
            f"this training was saved by {len(processes)} processes and goes on with "
            f"{distributed.world_size()}: batches are the same, but what each process draws "
            "(dropout) and its batch norm's statistics, where they are not synchronised, are not"
        )
    torch.set_rng_state(own["rng"].cpu())
    if "cuda_rng" in own and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda_rng"].cpu(), trainer.device)
    if same:
        for x, saved in zip(trainer.statistics(), own.get("statistics", []), strict=False):
            x.copy_(saved)


def _load_optimizer(trainer: Trainer, state: dict[str, Any]) -> None:
    """Moments from ``state``; weight decay and the like from this configuration."""
    groups = trainer.optimizer.param_groups
    settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    trainer.optimizer.load_state_dict(state)
    for group, own in zip(trainer.optimizer.param_groups, settings, strict=True):
        group.update(own)


def _go_on_from(trainer: Trainer, state: dict[str, Any], source: Path) -> None:
    """Go on with the epoch after ``state``, of another run or of the reference system."""
    remarks: list[str] = []
    if reference.made(state):
        remarks = _load_reference(trainer, state, source)
    else:
        load_state(trainer, state, source)
    # Another run's steps and best value need not be comparable with this one's.
    trainer.step = trainer.epoch * trainer.steps_per_epoch
    trainer.start_epoch_anew()
    trainer.average = trainer.new_average()
    trainer.best_metric, trainer.stale_epochs = None, 0
    where = f"{trainer.run_dir}: going on from {source} after epoch {trainer.epoch}"
    say("; ".join([where, *remarks]))


def _load_reference(trainer: Trainer, state: dict[str, Any], source: Path) -> list[str]:
    """Epoch, weights and, where it fits, the optimiser's state; returns remarks."""
    if "epoch" not in state:
        raise CheckpointError(
            f"{source}: holds weights but not the epoch that they are of; give it as "
            "trainer.init_weights to start from its weights"
        )
    remarks = checkpoint.load_encoder(trainer.method, state, source)
    trainer.epoch = state["epoch"]
    moments = reference.optimizer_state(state, trainer.method, trainer.optimizer)
    if moments is None:
        return [*remarks, "its optimizer's state does not fit this one, which starts anew"]
    _load_optimizer(trainer, moments)
    return [*remarks, "with its optimizer's state"]


def _refuse_changed_settings(saved: dict[str, Any], own: dict[str, Any], source: Path) -> None:
    from sslsv.config import differences

    changed = {
        key: change
        for key, change in (differences(saved, own) if saved else {}).items()
        if key not in _FREE_KEYS and (key.startswith(_FIXED_SECTIONS) or key in _FIXED_KEYS)
    }
    before, now = _splits(saved), _splits(own)
    if saved and before != now:  # speakers that were held out would be trained on
        changed["evaluation.validation split"] = f"{before} -> {now}"
    if changed:
        text = ", ".join(f"{key} {change}" for key, change in changed.items())
        raise CheckpointError(
            f"{source}: was trained with other settings ({text}); undo the change, or give "
            "another run_dir to start anew"
        )


def _splits(settings: dict[str, Any]) -> list[Any]:
    """Which speakers are held out, by the validation tasks that ask for it."""
    tasks = settings.get("evaluation", {}).get("validation", [])
    return [task["split"] for task in tasks if task.get("split")]


def _refuse_other_labels(saved: dict[str, Any], own: dict[str, Any], source: Path) -> None:
    """The outputs of a classifier must go on standing for what they stood for."""
    before, now = (settings.get(checkpoint.LABELS) for settings in (saved, own))
    if before is None or now is None or before == now:
        return
    at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)
    differ = f"{len(before)} labels, not {len(now)}"
    if at is not None:
        differ = f"label {at} is '{before[at]}', not '{now[at]}'"
    raise CheckpointError(
        f"{source}: was trained on other labels than {own['dataset']['train']} has in order of "
        f"first appearance ({differ}); restore the list, or start anew in another run_dir from the "
        "weights (trainer.init_weights)"
    )
