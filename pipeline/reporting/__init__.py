"""Numbers, pictures and curves of a run as files that a person reads."""
