"""One file per PEFT type: files on disk to the canonical form an engine applies."""
