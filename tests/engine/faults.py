"""Faults in an engine's process, on demand: what a device, a library or a bug can do to a step.

The process that gets `faulty(folder)` as part of its environment looks for a file in the folder at each step that has
work, takes it away and does what it says; for another one at each adapter that it reads. Nothing of this is in the
product: Python itself imports `sitecustomize`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Fault = Literal["spin", "lock", "device", "exit", "memory", "disk"]

FOLDER = "LIVERY_TEST_FAULTS"
SITE = '''
import importlib.abc, importlib.util, os, sys, threading

class Patched(importlib.abc.MetaPathFinder):
    """Changes the engine's step as soon as its module is imported, in processes that import it."""

    def find_spec(self, name, path, target=None):
        if name != "livery.engine.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def patched(module):
            load(module)
            patch(module)
        spec.loader.exec_module = patched
        return spec

def patch(module):
    core = module.EngineCore
    step, attempt, answers = core.step, core._attempt, module.answers
    read = module.ModelRunner.read_adapter
    broken = []

    def faulty_step(self):
        fault = taken() if self.has_work else ""
        while fault == "spin":
            pass
        if fault == "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        if fault == "exit":
            os._exit(3)
        if fault == "memory":
            raise MemoryError("asked for by a test")
        if fault == "device":
            broken.append(True)
        return step(self)

    def faulty_attempt(self, plan, action):
        def fail():
            raise RuntimeError("CUDA error: device-side assert triggered (asked for by a test)")
        return attempt(self, plan, fail if broken else action)

    def faulty_read(self, adapter):
        if taken("disk"):
            raise OSError("input/output error (asked for by a test)")
        return read(self, adapter)

    core.step, core._attempt, module.ModelRunner.read_adapter = faulty_step, faulty_attempt, faulty_read
    module.answers = lambda device: not broken and answers(device)

def taken(name="fault"):
    path = os.path.join(os.environ["LIVERY_TEST_FAULTS"], name)
    try:
        with open(path) as file:
            fault = file.read()
        os.unlink(path)
    except FileNotFoundError:
        return ""
    return fault

sys.meta_path.insert(0, Patched())
'''


def faulty(folder: Path) -> dict[str, str]:
    """What the environment of a process needs, so that its faults are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {"PYTHONPATH": path.rstrip(os.pathsep), FOLDER: str(folder)}


def cause(folder: Path, fault: Fault) -> None:
    """The next step with work does this; of "disk", the next reading of an adapter."""
    whole = folder / "fault.new"
    whole.write_text(fault)
    whole.rename(folder / ("disk" if fault == "disk" else "fault"))
