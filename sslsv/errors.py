"""Errors that a user can act on: entry points print the sentence and exit with code 2."""


class UserError(Exception):
    """Bad input. The message is one sentence naming the file, row or key, and what to do."""


class ConfigError(UserError):
    """A configuration that cannot mean what was written."""


class DataError(UserError):
    """A list, audio file or folder that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is damaged or does not fit the configuration."""


def listing(items: list[str], shown: int = 10) -> str:
    """Join ``items`` for a message, naming the first ``shown`` and counting the rest."""
    text = ", ".join(items[:shown])
    rest = len(items) - shown
    return f"{text} (and {rest} more)" if rest > 0 else text
