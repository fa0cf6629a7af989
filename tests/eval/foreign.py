"""A checkpoint of another project, which has no fingerprint."""

from pathlib import Path

FOREIGN = Path(__file__).parents[1] / "fixtures/robomimic050_dp_delta/model_epoch_1.pth"
"""A policy for Square."""
