"""For pytest alone."""

# a program that tests start, which takes arguments
collect_ignore = ["decoding_script.py"]
