"""Scripts behind every figure in the documents; run them as `python -m benchmarks.NAME`."""
