# One file for both variants: CUDA (default; torch's own wheels bring CUDA, so the base is plain Python) and CPU.
#
#   docker build -t loss-service .
#   docker build -t loss-service:cpu --build-arg VARIANT=cpu --build-arg TORCH_INDEX=<index of torch's CPU wheels> .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cuda
ARG TORCH_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/venv
COPY constraints.txt ./
# torch first and alone: a layer of its own that only a new version renews.
RUN torch="$(grep '^torch==' constraints.txt)" \
 && if [ "$VARIANT" = cpu ]; then torch="$torch+cpu"; fi \
 && /opt/venv/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch"
# A C compiler for the passes over rows; it stays behind in this stage, so any version will do.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY service ./service
RUN /opt/venv/bin/pip install -c constraints.txt . \
 && /opt/venv/bin/pip uninstall -y pip

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Loss Service" \
      org.opencontainers.image.description="Softmax, log-softmax, NLL, cross-entropy and their gradients over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LOSS_HOST=0.0.0.0
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; e = os.environ.get; tls = ssl._create_unverified_context() if e('LOSS_TLS_CERT') else None; u.urlopen(('https' if tls else 'http') + '://127.0.0.1:' + (e('LOSS_PORT') or '8000') + '/health/ready', timeout=2, context=tls)"]
ENTRYPOINT ["loss-service"]
CMD ["serve"]
