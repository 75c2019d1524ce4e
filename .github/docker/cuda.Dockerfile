# docker build -f .github/docker/cuda.Dockerfile -t lcmmerge:cuda .
# torch's own wheels bring the CUDA libraries; the driver is the host's (docker run --gpus all).
FROM python:3.11-slim
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY lcmmerge /src/lcmmerge
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[all]' && rm -rf /src
WORKDIR /work
ENTRYPOINT ["lcmmerge"]
