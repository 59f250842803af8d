"""Stream mode: gains on what linear layers write into the stream."""
