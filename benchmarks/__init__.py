"""Measurements, each resumable; what they found lies in `results`."""
