# An image with the commands; its torch carries CUDA. Build: docker build -t geossl .
# Run: docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" geossl pretrain my.yaml --dataset images --output_dir run
FROM python:3.12-slim

# on a GPU layers are compiled, which takes a C compiler
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

COPY setup.py pyproject.toml README.md LICENSE /src/
COPY hf_geossl /src/hf_geossl
RUN pip install --no-cache-dir "/src[eval,images]" && rm -r /src

# files of another user's folder: docker run --user "$(id -u)" -e HOME=/tmp ...
RUN useradd --create-home --uid 1000 geossl && install -d -o geossl /work
USER 1000
WORKDIR /work
ENTRYPOINT ["geossl"]
CMD ["--help"]
