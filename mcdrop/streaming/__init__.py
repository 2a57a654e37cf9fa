"""Statistics while passes come: accumulators that merge, and when a row has had enough passes."""
