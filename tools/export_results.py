"""A table of all runs below a folder: ``sslsv results`` by another name.

    python tools/export_results.py [FOLDER] [--list NAME ...] [--format json]
    python tools/export_results.py --readme README.md [--check]

``--help`` says more.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a clone works without installing

from sslsv.cli import run_command  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command("results"))
