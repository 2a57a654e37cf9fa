"""A network as a graph: what it takes, where noise enters it, and which of these places draw."""
