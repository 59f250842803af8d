"""What is taken where nobody says, the same at every door; needs no other module."""

SHARE = 0.1
"""Of the training images, set apart to validate on, and as many to test on."""
