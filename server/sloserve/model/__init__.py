"""Everything that imports torch: models, KV memory, attention, sampling."""
