"""The commands behind `livery`, one module each."""
