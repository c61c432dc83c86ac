"""How families of models write tool calls: read as they come, and forced by a grammar. Pure."""
