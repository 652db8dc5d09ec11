"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sslsv.errors import UserError


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside ``path`` that takes its place once the block ends without an error.

    The old file stays as it was where the block fails, and where the disk is full or the folder
    not writable, which is a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # usually it has taken its place and is no longer there
            temporary.unlink()


def user_cache() -> Path:
    """The user's folder for what can be made again; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "sslsv")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any parser accepts: numbers that are not finite become null."""
    with atomic_write(path, "w") as file:
        json.dump(_finite(value), file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); move it away") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; move it away")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
