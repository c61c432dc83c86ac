"""What an answer may look like: constraints, compiled grammars, and where one answer stands."""
