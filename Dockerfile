# dinv in a container. On a CPU:  docker build -t dinv .   docker run --rm -v "$PWD:/work" dinv run photos
# On a GPU:  docker build -t dinv:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#            docker run --rm --gpus all -v "$PWD:/work" dinv:cuda run photos --device cuda
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY src /src/src
WORKDIR /src
# PyTorch first, from the index of the machine's kind: the default one has CUDA's libraries, 5 GB that a CPU cannot use.
RUN pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple \
        torch torchvision \
    && pip install --no-cache-dir -c constraints.txt '.[demo]' \
    && useradd --create-home --uid 1000 dinv

USER 1000
WORKDIR /work
ENTRYPOINT ["dinv"]
CMD ["--help"]
