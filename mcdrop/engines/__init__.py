"""What computes passes: a captured program, or the network itself."""
