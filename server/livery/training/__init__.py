"""Adapters trained from a YAML file: what a run may say, its data, the training itself and what came of it.

`livery.commands.training` puts it together. peft, trl and datasets are imported by `trainer` alone.
"""
