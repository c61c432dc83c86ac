"""LoRA adapters over one model: read, proved, and applied row by row within one batch."""
