# The worker: torch and the bundled model. Build from the repository root:
#   docker build -f docker/worker.Dockerfile -t denoised-worker .
#
# TORCH_INDEX is where pip looks for torch besides the package index. The default has the CPU builds, which are small.
# For NVIDIA GPUs leave it empty (the package index has the CUDA build), or name the index of another CUDA version:
#   docker build -f docker/worker.Dockerfile --build-arg TORCH_INDEX= -t denoised-worker:cuda .
FROM python:3.13-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The dependencies first, in a layer of their own: they are large, and change less often than the code.
RUN python -m venv /opt/denoised \
    && python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['worker'], sep='\n')" > requirements.txt \
    && PIP_EXTRA_INDEX_URL="$TORCH_INDEX" /opt/denoised/bin/pip install --no-cache-dir \
        -c constraints.txt -r requirements.txt
COPY README.md LICENSE NOTICE ./
COPY app app
COPY workers workers
COPY models models
RUN /opt/denoised/bin/pip install --no-cache-dir -c constraints.txt --no-deps . \
    && /opt/denoised/bin/pip check
RUN /opt/denoised/bin/python -c "\
import importlib.metadata as metadata; \
owners = metadata.packages_distributions(); \
assert all(set(owners[name]) == {'denoised'} for name in ('app', 'workers', 'models')), owners"

FROM python:3.13-slim
COPY --from=build /opt/denoised /opt/denoised
COPY docker/worker_health.py /opt/denoised/worker_health.py
RUN install -d -o 10001 -g 10001 -m 0750 /data
ENV PATH=/opt/denoised/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DENOISED_DATA_DIR=/data \
    HF_HOME=/data/hub
USER 10001:10001
WORKDIR /data
VOLUME /data
# Large models take their time to load; the worker tells Redis that it lives from the first second on.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "/opt/denoised/worker_health.py"]
# SIGTERM lets it hand over what it has begun, which takes less than five seconds.
CMD ["denoised", "worker"]
