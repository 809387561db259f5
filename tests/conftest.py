"""Fixtures that all tests may take."""

import os

import hypothesis

# Tiny models are fastest on one thread; set before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.databases", "tests.apis"]

# A slow machine is no error.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
