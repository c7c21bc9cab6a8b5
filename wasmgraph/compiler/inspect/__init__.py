"""Inspection of kernels: their text, their work, the machine's limits."""
