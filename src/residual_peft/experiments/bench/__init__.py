"""Models x data sets x methods x protocols, from a registry that is data, to rows that stay.

`registry` says what is to be run, `plan` what that takes, `run` does it, and `results` keeps a line
for every run that finished, so that whoever is killed goes on where it stopped.
"""
