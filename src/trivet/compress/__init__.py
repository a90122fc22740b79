"""Smaller models, and what each of them costs: distillation, pruning, quantization, and the table beside the source."""
