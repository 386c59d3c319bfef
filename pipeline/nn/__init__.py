"""Building blocks that several networks and tokenizers share."""
