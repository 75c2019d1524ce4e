# docker build -f .github/docker/cpu.Dockerfile -t lcmmerge .
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c /src/constraints.txt /src \
    && rm -rf /src
WORKDIR /work
ENTRYPOINT ["lcmmerge"]
