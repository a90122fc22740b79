"""Reward models: losses, training, evaluation and calibration."""
