"""The process of one network: it keeps the namespace, and runs what serves the network."""
