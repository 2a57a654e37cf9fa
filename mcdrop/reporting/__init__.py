"""The report about a network: how it is made, what is measured, what speaks against it."""
