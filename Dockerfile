# An image for a CPU, or with CUDA, in which an unprivileged user trains:
#
#   docker build -t resnet-train .
#   docker build -t resnet-train:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/workspace/runs" resnet-train resnet-train --config quickstart
#
# With your data, mounted read-only, and a GPU:
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/runs:/workspace/runs" -v /data:/data:ro \
#     -e RESNET_TRAIN_DATA_DIR=/data resnet-train:cuda resnet-train --config resnet18
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir "torch>=2.11" "torchvision>=0.26" --index-url "$TORCH_INDEX"

COPY pyproject.toml README.md LICENSE /src/
COPY configs /src/configs
COPY resnet_train /src/resnet_train
RUN pip install --no-cache-dir /src

# Whoever runs the container may write runs, data and caches.
RUN useradd --uid 1000 trainer && mkdir -p /workspace/runs /workspace/data && chmod -R 777 /workspace
ENV HOME=/tmp
WORKDIR /workspace
USER 1000
CMD ["python", "-m", "resnet_train"]
