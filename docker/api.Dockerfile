# syntax=docker/dockerfile:1
# The HTTP API, and the one-shot that upgrades the database. Holds no torch, and proves it.
#   docker build -f docker/api.Dockerfile -t neuroprune-api .

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/neuroprune
COPY pyproject.toml README.md constraints.txt ./
COPY api api
COPY client client
COPY core core
COPY migrations migrations
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=constraints.txt /opt/neuroprune/bin/pip install --disable-pip-version-check ".[api]"
RUN /opt/neuroprune/bin/python -c "from importlib.util import find_spec; assert find_spec('torch') is None"

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home neuroprune \
    && install --directory --owner neuroprune --group neuroprune \
        /var/lib/neuroprune/storage /var/lib/neuroprune/work
COPY --from=build /opt/neuroprune /opt/neuroprune
ENV PATH=/opt/neuroprune/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NEUROPRUNE_LOG_FORMAT=json \
    NEUROPRUNE_STORAGE_URL=/var/lib/neuroprune/storage \
    NEUROPRUNE_WORK_DIR=/var/lib/neuroprune/work
USER 10001:10001
WORKDIR /var/lib/neuroprune
VOLUME /var/lib/neuroprune/storage
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# A stream of events lasts as long as its job; without a limit, an API that is told to stop would wait for that.
CMD ["uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
    "--timeout-graceful-shutdown", "5"]
