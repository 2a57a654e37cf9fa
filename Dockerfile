# A server of models in /models:            docker run -p 8000:8000 -v "$PWD/models:/models:ro" mcdrop
#   (/models/NAME/ or /models/NAME/VERSION/, the newest of which is served)
# Without any it serves the demo's model:   docker run -p 8000:8000 mcdrop
# With models baked in:                     FROM mcdrop, then COPY models /models
# For NVIDIA GPUs, with `--gpus all`:       docker build --build-arg COMPUTE=cu130 -t mcdrop .
# As safe as it gets:                       docker run --read-only --cap-drop ALL --security-opt no-new-privileges ...
# Every setting is an environment variable: docker run -e MCDROP_MAX_ROWS=100 ... (mcdrop serve --help lists them).

FROM python:3.11-slim-bookworm AS build

# cpu, or a CUDA version as PyTorch names its builds. The index only adds to the usual one: where it cannot be reached,
# pip takes the wheel that it finds elsewhere.
ARG COMPUTE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${COMPUTE}
ARG TORCH="torch>=2.11,<2.14"

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/mcdrop/bin:$PATH
RUN python -m venv /opt/mcdrop
RUN pip install --no-deps --retries 2 --extra-index-url "$TORCH_INDEX" "$TORCH"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mcdrop mcdrop
COPY service service
RUN pip install .

WORKDIR /
RUN python -m mcdrop.demo --save /opt/demo/digits


FROM python:3.11-slim-bookworm

RUN useradd --system --user-group --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mcdrop \
    && mkdir /models
COPY --from=build /opt/mcdrop /opt/mcdrop
COPY --from=build /opt/demo /opt/demo

# MALLOC_ARENA_MAX: as many pools of memory as threads that use much of it, where glibc makes eight for each core.
# TMPDIR: PyTorch does not start without a folder to write to, and this one is there in a read-only container too.
ENV PATH=/opt/mcdrop/bin:$PATH HOME=/tmp TMPDIR=/dev/shm MALLOC_ARENA_MAX=2 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MCDROP_HOST=0.0.0.0 MCDROP_PORT=8000 MCDROP_MODELS=/models MCDROP_FALLBACK_MODELS=/opt/demo

USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# 401: with open_health off and without a key, all that can be seen is that the server answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['MCDROP_PORT']), timeout=4); c.request('GET', '/health/ready'); exit(c.getresponse().status not in (200, 401))"]
ENTRYPOINT ["mcdrop"]
CMD ["serve"]
