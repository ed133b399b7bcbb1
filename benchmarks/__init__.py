"""What the suite costs, measured: `python -m benchmarks [name]` runs every bench_*.py here."""
