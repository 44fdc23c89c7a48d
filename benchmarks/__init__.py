"""One module per question; each runs alone as ``python -m benchmarks.NAME [--quick] [--json] [--csv FILE]``."""
