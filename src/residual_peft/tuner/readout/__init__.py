"""Readout mode: gains in what units add to the readout."""
