"""Faults under load: see `bench.chaos.__main__`."""
