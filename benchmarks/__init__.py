"""How fast mcdrop is and how much memory it takes, beside what people do without it: `python -m benchmarks`."""
