"""What is measured on one GPU: `python -m benchmarks.gpu`."""
