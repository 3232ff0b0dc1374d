"""Export: a network as a graph that other runtimes run, checked against the network that it was made of."""
