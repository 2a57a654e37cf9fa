"""How many requests mcdrop answers beside other ways to serve the same network: `python -m benchmarks.serving`.

Each server is a process of its own on 127.0.0.1, has the same network, weights and passes, and is given rows of 784
floats as JSON. Servers and the load generator share the same cores.
"""
