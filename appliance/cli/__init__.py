"""Talk to a person at a terminal: one file per family of verbs."""
