"""Makes `docs/results.md` and the figures `docs/figures/quality*.svg` of what `benchmarks.quality` measured.

python -m benchmarks.quality_page
"""
