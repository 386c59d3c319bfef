"""How latents are disturbed while a tokenizer trains: one file a method."""
