"""The parts of benchmarks/overoptimization.py; docs/overoptimization.md says what each is for."""
