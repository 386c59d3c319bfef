"""Networks that nothing trains, as losses and critics declare them: one file per kind."""
