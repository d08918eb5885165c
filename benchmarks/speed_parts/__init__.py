"""What benchmarks/run.py measures, a module for each part."""
