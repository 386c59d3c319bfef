"""How near the codes of one tokenizer are to those of another: one file a measure."""
