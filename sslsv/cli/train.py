"""``sslsv train``."""

from __future__ import annotations

import argparse

from sslsv.cli.base import Command, add_config


def _run(arguments: argparse.Namespace) -> None:
    from sslsv import distributed
    from sslsv.config import load_config
    from sslsv.experiment import train

    with distributed.session():
        train(load_config(arguments.config, arguments.overrides))


COMMAND = Command(
    name="train",
    help="Train a model, or go on where the last run in its folder stopped.",
    details="Checkpoints, curves and logs go to the folder of CONFIG, or to run_dir=PATH.\n"
    "On several GPUs: ./train_ddp.sh N CONFIG; on a cluster: tools/slurm/launch.py.",
    example="sslsv train models/demo/simclr trainer.epochs=10",
    add_arguments=add_config,
    run=_run,
)
