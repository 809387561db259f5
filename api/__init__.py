"""The HTTP API: accepts jobs, shows their state, serves their artifacts. Never imports torch."""
