"""Livery: one base model in memory, many fine-tuned adapters served by name."""

__version__ = "0.1.0"
