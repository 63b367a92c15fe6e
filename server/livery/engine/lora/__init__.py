"""Adapters on the device: packed weights, and linear modules that apply them row by row."""
