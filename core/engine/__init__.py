"""The NeuroPrune pipeline: the only package that imports torch and transformers."""
