# Pippin on a plain Linux CPU, with the model that comes with it: for trying it out, and for CI of programs that use it.
#
#   docker build -t pippin .
#   docker run --rm -p 127.0.0.1:8080:8080 pippin
#   docker run --rm -p 127.0.0.1:8080:8080 pippin serve --backend mock --host 0.0.0.0 --security-allow-open true --security-allowed-hosts pippin
#
# A container has no GPU of Apple's: on a Mac, install Pippin itself.
FROM python:3.11-slim AS build
WORKDIR /pippin
COPY . .
RUN python -m pip wheel --quiet --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
# g++: MLX on a CPU compiles its fused kernels when they are first used
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/requirements.txt
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    python -m pip install --quiet --no-cache-dir --constraint /tmp/requirements.txt /wheel/*.whl
RUN useradd --create-home --uid 1000 pippin
USER pippin
WORKDIR /home/pippin
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["pippin"]
# Inside the container every address is needed; who may reach it is for `-p` to say, as above. The container's own name
# is `pippin` for others of a network of containers. For anything else, mount a keys file: see docs/security.md.
CMD ["serve", "--host", "0.0.0.0", "--security-allow-open", "true", "--security-allowed-hosts", "pippin"]
