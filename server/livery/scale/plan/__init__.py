"""The capacity plan: what a number of adapters, a rate of requests and a kind of GPU come to.

`planner` works it out by formulas, each number with how it came; `simulation` plays requests through replicas to see
what those formulas leave out: queues, bursts, and which replica a request goes to. README.md has the formulas, their
sources and how they compare with measurements. Nothing here imports torch or starts an engine.
"""
