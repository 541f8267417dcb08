"""
The desk-scale experiment on scenes: which method keeps what, arms x seeds, by rules that were fixed before.

`python -m benchmarks.scenes_experiment --preset tiny|smoke|desk|cpu|gpu|gpu_long`.
"""
