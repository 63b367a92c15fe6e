"""Requests for many adapters on many replicas, played through by events: which routing policy serves them best.

`load` makes the requests, `replica` serves them by the plan's costs, `policies` choose replicas, `cluster` plays it all
and `outcome` says how it went. Deterministic for a seed. Imports no torch and starts nothing.
"""
