# docker build --target cpu -t t3d:cpu .     or, for an NVIDIA driver of the host:
# docker build --target cuda -t t3d:cuda .
# docker run --rm -v "$PWD/runs:/t3d/runs" t3d:cpu run demo
FROM python:3.13-slim AS base
# The sandbox for generated programs uses bubblewrap where the container may make namespaces.
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /t3d
COPY Makefile constraints.txt pyproject.toml README.md LICENSE ./
COPY t3d t3d
ENV PATH=/t3d/.venv/bin:$PATH PIP_NO_CACHE_DIR=1
ENTRYPOINT ["t3d"]
CMD ["--help"]

FROM base AS cpu
# The same release of torch without CUDA.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN make install

FROM base AS cuda
# PyPI's torch brings CUDA; triton compiles a launcher with gcc when it first runs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN make install
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
