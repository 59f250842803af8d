"""One module per family of architectures; `registry` imports all that are here."""
