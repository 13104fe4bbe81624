"""``python -m benchmarks``: how fast NSM is, against its own arithmetic and against PyG's layers."""
