# Three images from one file:
#   docker build --target train   -t edgetl-train   .    # the commands, with PyTorch; --build-arg BASE=... puts them on CUDA
#   docker build --target runtime -t edgetl-runtime .    # python -m edgetl.runtime: predict, serve --stdin, info, verify
#   docker build --target service -t edgetl-service .    # deploy/examples/service.py: the bundle over HTTP
# runtime and service run as a user without privileges, write nothing (`docker run --read-only`), and hold no pip.
# deploy/prove-dockerfile.sh builds and tries them without a container engine; the sizes stand in deploy/README.md.

# Any Debian or Ubuntu with Python 3.11 or newer and its venv module; the device images must come from the same one.
ARG PYTHON=docker.io/library/python:3.13-slim-trixie
# For example docker.io/nvidia/cuda:13.1.1-base-ubuntu24.04. PyTorch's wheels bring CUDA with them, so a plain base
# works on GPUs too where the host has NVIDIA's container toolkit.
ARG BASE=${PYTHON}

FROM ${PYTHON} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgetl edgetl
RUN python3 -m venv /pip \
    && /pip/bin/pip install --no-cache-dir build \
    && /pip/bin/python -m build --wheel --outdir /dist

# What the device needs, installed by a pip that stays behind.
FROM wheel AS device
RUN python3 -m venv --without-pip /opt/edgetl \
    && /pip/bin/pip --python /opt/edgetl/bin/python install --no-cache-dir "$(echo /dist/*.whl)[cpu]"

FROM device AS web
RUN /pip/bin/pip --python /opt/edgetl/bin/python install --no-cache-dir "$(echo /dist/*.whl)[serve]"
COPY deploy/examples/service.py /opt/edgetl/service.py

FROM ${PYTHON} AS nobody
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin edgetl
ENV PATH=/opt/edgetl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
# A number, so that orchestrators can tell that it is not root.
USER 10001:10001
WORKDIR /

FROM nobody AS runtime
COPY --from=device /opt/edgetl /opt/edgetl
# Whether the bundle at /bundle is whole and can be opened here.
HEALTHCHECK --interval=5m --timeout=30s --start-period=10s \
    CMD ["python", "-P", "-m", "edgetl.runtime", "info", "/bundle"]
ENTRYPOINT ["python", "-P", "-m", "edgetl.runtime"]
CMD ["--help"]

FROM nobody AS service
COPY --from=web /opt/edgetl /opt/edgetl
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=8)"]
ENTRYPOINT ["python", "-P", "/opt/edgetl/service.py"]
CMD ["/bundle", "--host", "0.0.0.0"]

FROM ${BASE} AS train
RUN python3 -c "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
COPY --from=wheel /dist /dist
RUN python3 -m venv /opt/edgetl && /opt/edgetl/bin/pip install --no-cache-dir "$(echo /dist/*.whl)[demo]"
RUN useradd --create-home edgetl
ENV PATH=/opt/edgetl/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER edgetl
WORKDIR /home/edgetl
ENTRYPOINT ["edgetl"]
