# An image with the commands; its torch carries CUDA. Build: docker build -t geossl .
# Run: docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" geossl pretrain my.yaml --dataset images --output_dir run
FROM python:3.12-slim

COPY setup.py pyproject.toml README.md LICENSE /src/
COPY hf_geossl /src/hf_geossl
RUN pip install --no-cache-dir "/src[eval,images]" && rm -r /src

RUN useradd --create-home geossl
USER geossl
WORKDIR /work
ENTRYPOINT ["geossl"]
CMD ["--help"]
