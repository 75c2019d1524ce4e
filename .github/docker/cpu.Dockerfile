# docker build -f .github/docker/cpu.Dockerfile -t lcmmerge .
FROM python:3.11-slim
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY lcmmerge /src/lcmmerge
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c /src/constraints.txt '/src[all]' \
    && rm -rf /src
WORKDIR /work
ENTRYPOINT ["lcmmerge"]
