"""What the API and the worker share; torch lives in :mod:`core.engine` alone."""
