"""Fixtures of the HTTP tests serve here too."""

from __future__ import annotations

from api.conftest import module_serve, serve, tokenizer

__all__ = ["module_serve", "serve", "tokenizer"]
