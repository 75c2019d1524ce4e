# docker build -f .github/docker/cuda.Dockerfile -t lcmmerge:cuda .
# torch's own wheels bring the CUDA libraries; the driver is the host's (docker run --gpus all).
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
WORKDIR /work
ENTRYPOINT ["lcmmerge"]
