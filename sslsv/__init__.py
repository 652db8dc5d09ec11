"""Self-supervised learning of speaker representations."""

__version__ = "3.0.0.dev0"
