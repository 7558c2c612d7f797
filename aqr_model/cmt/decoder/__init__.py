"""The transformer over queries and tokens, its attention, and the branches that predict."""
