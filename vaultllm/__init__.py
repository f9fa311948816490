"""vaultllm: an Obsidian vault becomes scenes, a memory and a trained adapter; answers come back as notes."""

__version__ = "0.1.0"
