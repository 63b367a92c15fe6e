"""The engine measured in its own process, without HTTP or service: `livery bench engine`.

Every number is a ratio of two things measured in turn within one run, or a time against the floor that the shapes and
the machine's own bandwidth and arithmetic set.
"""
