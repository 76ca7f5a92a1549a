# The API: no torch, no weights. Build from the repository root:
#   docker build -f docker/api.Dockerfile -t denoised-api .
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY app app
COPY workers workers
COPY models models
RUN rm -rf models/bundled \
    && python -m venv /opt/denoised \
    && /opt/denoised/bin/pip install --no-cache-dir -c constraints.txt .
# Our three packages have common names: nobody else's may lie over them, and torch has no business here.
RUN /opt/denoised/bin/python -c "\
import importlib.metadata as metadata, importlib.util as util; \
owners = metadata.packages_distributions(); \
assert all(set(owners[name]) == {'denoised'} for name in ('app', 'workers', 'models')), owners; \
assert util.find_spec('torch') is None"

FROM python:3.13-slim
COPY --from=build /opt/denoised /opt/denoised
RUN install -d -o 10001 -g 10001 -m 0750 /data
ENV PATH=/opt/denoised/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DENOISED_HOST=0.0.0.0 \
    DENOISED_PORT=8000 \
    DENOISED_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Without keys (DENOISED_API_KEYS, or the file /data/keys) it refuses to start: the address is open to others.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["denoised", "api"]
