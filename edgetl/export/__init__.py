"""From a RUN to a bundle: the graph, the proof that it answers as the model did, and what it says of itself."""
