"""Published models of text by transformers: their sizes, their weights, their words, and their hidden states."""
