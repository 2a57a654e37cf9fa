"""From a network to a proved program: a private copy, its training flags, the trace, the proofs."""
