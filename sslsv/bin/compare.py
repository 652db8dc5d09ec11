"""``python sslsv/bin/compare.py A B``: score files or runs; ``--help`` says more."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a clone works without installing

from sslsv.cli import run_command  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command("compare"))
