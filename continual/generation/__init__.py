"""Writing text with the frozen language model: many rows at once, each through its own delta.

`engine.Engine` writes one token of every row at a time, and rows join and leave it at every token. `sampling` chooses
the tokens, `key_values` holds what earlier tokens left for later ones, `passes` runs the model, and `text_stream` turns
tokens into text as they come.
"""
