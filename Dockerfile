# docker build -t immich-bridge .       (podman and buildah: with --format docker, see HEALTHCHECK)
# docker run -p 8080:8080 -e IMMICH_SERVER_URL=http://your-immich:2283 immich-bridge

# Pinned: another Python is a commit of its own.
ARG BASE=python:3.13.16-slim-trixie

FROM ${BASE} AS build
WORKDIR /build
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY src/immich_bridge src/immich_bridge
# Both extras, since nobody adds them later to a file system that is read-only.
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[fast,redis]'
# Bytecode that is never compared with its source: the times of files do not survive every copy.
RUN python -m venv --without-pip /opt/immich-bridge && \
    pip --python /opt/immich-bridge/bin/python install --no-index --no-deps --no-cache-dir \
        --no-compile /wheels/*.whl && \
    python -m compileall -q --invalidation-mode unchecked-hash /opt/immich-bridge/lib

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="immich-bridge" \
      org.opencontainers.image.description="Streams raw photo uploads from iOS background \
jobs into Immich, and proxies everything else unchanged" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE}"

# With a read-only root there is no /tmp for what SQLite cannot hold in memory.
ENV PATH=/opt/immich-bridge/bin:$PATH \
    SQLITE_TMPDIR=/data

COPY --from=build /opt/immich-bridge /opt/immich-bridge
COPY deploy/healthcheck.py /opt/immich-bridge/healthcheck.py

# The name serves people only; Kubernetes checks the number. The first run leaves the bytecode of
# the standard library behind, which the base lacks and the user below could not write.
RUN groupadd --gid 10001 immich-bridge && \
    useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin immich-bridge && \
    install -d -o 10001 -g 10001 -m 0750 /data /storage && \
    immich-bridge --version
USER 10001:10001

# Here the defaults of DB_PATH and JWT_SECRET_PATH lie in /data, and STORAGE_DIR is /storage.
WORKDIR /
VOLUME ["/data", "/storage"]
EXPOSE 8080

# Kept by the Docker image format only; the OCI format has no place for it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "/opt/immich-bridge/healthcheck.py"]

# No shell in between: signals reach the server, and arguments are those of the command line.
ENTRYPOINT ["immich-bridge"]
