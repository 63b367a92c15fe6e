"""The server that a client's tests are let loose on, as run.py says it in the environment."""

from __future__ import annotations

import os

URL = os.environ["LIVERY_URL"]
V1 = f"{URL}/v1"
BASE = os.environ["LIVERY_BASE"]  # the base model's name
ADAPTERS = os.environ["LIVERY_ADAPTERS"].split(",")
MODEL_FOLDER = os.environ["LIVERY_MODEL_FOLDER"]  # weights and tokenizer of the base
ADAPTER_FOLDER = os.environ["LIVERY_ADAPTER_FOLDER"]  # a folder for each adapter
