"""Message passing: what nodes know of each other. Node states -> node embeddings."""
