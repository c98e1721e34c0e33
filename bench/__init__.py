"""Benchmarks: `make bench`. Ratios within one run; no absolute time is a pass mark."""
