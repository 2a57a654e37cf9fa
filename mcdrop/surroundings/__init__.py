"""What lies around a computation: memory, threads, PyTorch's modes, the terminal."""
