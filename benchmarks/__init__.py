"""Measurements that anyone can repeat: `python -m benchmarks.demo` and `python -m benchmarks.figures`."""
