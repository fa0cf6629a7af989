"""Running policies on their machine: CUDA graphs."""
