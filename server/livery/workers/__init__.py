"""Several processes that serve HTTP over one engine: what they ask of the process that has it, and how they live."""
