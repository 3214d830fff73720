"""What systems share that listen through an adapter: recordings become embeddings at places of a token row.

It is no system of its own, and names none.
"""
