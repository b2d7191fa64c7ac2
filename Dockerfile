# Two images from one file:
#   docker build --target train   --build-arg BASE=python:3.12-slim -t edgetl-train .
#   docker build --target runtime -t edgetl-runtime .

ARG BASE=python:3.12-slim

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgetl edgetl
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist

# BASE may be an image with CUDA; it needs Python 3.11 or newer and pip.
FROM ${BASE} AS train
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)[demo]" && rm -rf /dist
RUN useradd --create-home edgetl
USER edgetl
WORKDIR /home/edgetl
ENTRYPOINT ["edgetl"]

FROM python:3.12-slim AS runtime
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)[cpu]" && rm -rf /dist \
    && useradd --create-home edgetl
USER edgetl
WORKDIR /home/edgetl
ENTRYPOINT ["python", "-P", "-m", "edgetl.runtime"]
