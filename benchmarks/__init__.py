"""Scripts whose printed results are kept beside them."""
