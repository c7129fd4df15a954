"""Communication between replicas: collectives, averaging, compression and their cost."""
