"""`python -m residual_peft.cli`, where the console script is not on the path."""

from .program import main

main()
