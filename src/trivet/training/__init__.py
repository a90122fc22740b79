"""What every training stage shares: devices, precision, checkpoints, exact resume, metrics."""
